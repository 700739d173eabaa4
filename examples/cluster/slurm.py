"""Match a network on a SLURM cluster: Dask asks for jobs, each of which is some workers.

python examples/cluster/slurm.py              # on a login node
python examples/cluster/slurm.py --here       # jobs are processes of this machine
"""

import argparse

import torch
from torch import nn

from simplicit import implicitize


def main() -> None:
    """Start workers, match a network, and stop them."""
    from dask_jobqueue import SLURMCluster
    from dask_jobqueue.local import LocalCluster

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--here", action="store_true")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    kind = LocalCluster if options.here else SLURMCluster
    # a worker has one thread: pieces are cut for one core, and Python runs one at a time
    cluster = kind(cores=1, processes=1, memory="2GB", walltime="01:00:00")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 600), nn.ReLU(), nn.Linear(600, 10)).eval()
    with cluster, cluster.get_client() as client:
        cluster.scale(jobs=options.jobs)
        client.wait_for_workers(options.jobs)
        # sweeps on the outputs are work of this process alone
        model = implicitize(net, torch.rand(1000, 64), sparsity=0.8, sweeps=0, executor=client)
    print(f"{model.nonzeros:,} of {model.reference_nonzeros:,} weights, by {options.jobs} jobs")


if __name__ == "__main__":
    main()
