"""`CertifiedLasso` against scikit-learn's own conventions and solvers."""

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import ElasticNet, Lasso
from sklearn.utils.estimator_checks import parametrize_with_checks

from simplicit import CertifiedLasso
from simplicit.errors import InputError


@parametrize_with_checks([CertifiedLasso(l1=0.01), CertifiedLasso(l0=0.01, l1=0.0, l2=0.1)])
def test_it_keeps_the_conventions_of_scikit_learn(estimator, check):
    check(estimator)


def data(targets=3):
    draw = np.random.default_rng(0)
    X = draw.normal(size=(80, 12)) + 5
    return X, X[:, :targets] @ draw.normal(size=(targets, targets)) + draw.normal(
        size=(80, targets)
    )


@pytest.mark.parametrize("intercept", [True, False])
def test_l1_is_lasso(intercept):
    X, y = data()
    mine = CertifiedLasso(l1=0.2, fit_intercept=intercept, tol=1e-12).fit(X, y)
    theirs = Lasso(alpha=0.2, fit_intercept=intercept, tol=1e-12, max_iter=100_000).fit(X, y)
    np.testing.assert_allclose(mine.coef_, theirs.coef_, atol=1e-6)
    np.testing.assert_allclose(mine.intercept_, theirs.intercept_, atol=1e-5)
    np.testing.assert_allclose(mine.predict(X), theirs.predict(X), atol=1e-5)


def test_l1_and_l2_are_the_elastic_net():
    X, y = data(1)
    mine = CertifiedLasso(l1=0.1, l2=0.3, tol=1e-12).fit(X, y[:, 0])
    theirs = ElasticNet(alpha=0.4, l1_ratio=0.25, tol=1e-12, max_iter=100_000).fit(X, y[:, 0])
    np.testing.assert_allclose(mine.coef_, theirs.coef_, atol=1e-6)
    assert mine.coef_.shape == (12,)
    assert isinstance(mine.intercept_, float) and isinstance(mine.dual_gap_, float)


def test_the_radius_holds():
    X, y = data()
    model = CertifiedLasso(l1=0.0, radius=0.5).fit(X, y)
    assert (abs(model.coef_).sum(1) <= 0.5 * (1 + 1e-9)).all()
    assert (abs(model.coef_).sum(1) >= 0.5 * (1 - 1e-6)).any()


def test_targets_that_are_not_solved_are_said():
    X, y = data()
    with pytest.warns(ConvergenceWarning, match="3 of 3 targets not solved"):
        CertifiedLasso(l1=0.1, tol=1e-14, max_iter=1).fit(X, y)


def test_a_wrong_penalty_is_named():
    X, y = data()
    with pytest.raises(InputError, match="l1=-1"):
        CertifiedLasso(l1=-1).fit(X, y)
