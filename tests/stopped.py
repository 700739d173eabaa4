"""A run that is stopped on the way, as by Ctrl-C."""

from contextlib import contextmanager


@contextmanager
def stopping(monkeypatch, task: str, step: int):
    """Let the run be stopped, as by Ctrl-C, after so many steps of a task."""
    done = []

    @contextmanager
    def watched(description, total, console=None):
        def count(n=1, info=""):
            if description == task:
                done.append(info)
                if len(done) == step:
                    raise KeyboardInterrupt

        yield count

    with monkeypatch.context() as patch:
        patch.setattr("simplicit.system.progress.task", watched)
        yield done
