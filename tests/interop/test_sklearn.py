"""scikit-learn: Cython with memoryviews and OpenMP, and BLAS."""

import warnings

import numpy as np
import pytest

from helpers.compare import assert_same
from helpers.handover import dtypes, handed, in_threads, pending, positive, regular

pytest.importorskip("sklearn")
from sklearn import (
    cluster,
    decomposition,
    ensemble,
    gaussian_process,
    linear_model,
    manifold,
    metrics,
    mixture,
    model_selection,
    naive_bayes,
    neighbors,
    neural_network,
    pipeline,
    preprocessing,
    svm,
    tree,
)

SIZES = {"small": (50, 4), "64KiB": (900, 10), "MiB": (9000, 20)}
sizes = pytest.mark.parametrize("shape", SIZES.values(), ids=SIZES)


def classes(x):
    return (x[:, 0] + x[:, 1] > 0).astype(int)


MODELS = {
    "linear": lambda: linear_model.LinearRegression(),
    "ridge": lambda: linear_model.Ridge(),
    "lasso": lambda: linear_model.Lasso(alpha=0.01),
    "elastic": lambda: linear_model.ElasticNet(alpha=0.01, precompute=True),
    "sgd": lambda: linear_model.SGDRegressor(random_state=0, max_iter=20),
    "tree": lambda: tree.DecisionTreeRegressor(max_depth=5, random_state=0),
    "forest": lambda: ensemble.RandomForestRegressor(
        2,
        max_depth=4,
        random_state=0,
        n_jobs=2,  # the sum of more depends on time
    ),
    "boosting": lambda: ensemble.HistGradientBoostingRegressor(
        max_iter=5, random_state=0
    ),
    "knn": lambda: neighbors.KNeighborsRegressor(3),
    "kernel": lambda: neighbors.KNeighborsRegressor(3, algorithm="kd_tree"),
}
CLASSIFIERS = {
    "logistic": lambda: linear_model.LogisticRegression(max_iter=50),
    "sgd": lambda: linear_model.SGDClassifier(random_state=0, max_iter=20),
    "svc": lambda: svm.SVC(random_state=0),
    "linear svc": lambda: svm.LinearSVC(random_state=0),
    "tree": lambda: tree.DecisionTreeClassifier(max_depth=4, random_state=0),
    "bayes": lambda: naive_bayes.GaussianNB(),
    "network": lambda: neural_network.MLPClassifier((5,), max_iter=5, random_state=0),
    "process": lambda: gaussian_process.GaussianProcessClassifier(optimizer=None),
    "pipeline": lambda: pipeline.make_pipeline(
        preprocessing.StandardScaler(copy=False),
        decomposition.PCA(2, random_state=0),
        linear_model.RidgeClassifier(),
    ),
}
SLOW = {"svc", "process", "linear svc"}


def quietly(call):
    """Whether a fit converges is not the question."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call()


@sizes
@dtypes("f8", "f4")
@pytest.mark.parametrize("name", MODELS)
def test_regression(name, shape, dtype):
    if dtype == "f4" and shape[0] == 50:
        pytest.skip("the two larger sizes will do")

    def work():
        x = pending(shape, dtype)
        y = handed(x[:, 0] * 2 + x[:, 1]) if x[:, 0].nbytes >= 32768 else x[:, 0] * 2
        model = quietly(lambda: MODELS[name]().fit(x, y))
        return model.predict(pending(shape, dtype, seed=7)), x, y

    assert_same(work)


@sizes
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classification(name, shape):
    if name in SLOW and shape[0] > 5000:
        pytest.skip("slow")

    def work():
        x = pending(shape)
        before = handed(x + 1)
        model = quietly(lambda: CLASSIFIERS[name]().fit(x, classes(x)))
        return model.predict(pending(shape, seed=7)), x, before

    assert_same(work)


TRANSFORMS = {
    "scale": lambda x: preprocessing.StandardScaler().fit_transform(x),
    "scale in place": lambda x: preprocessing.StandardScaler(copy=False).fit_transform(
        x
    ),
    "minmax": lambda x: preprocessing.MinMaxScaler().fit_transform(x),
    "robust": lambda x: preprocessing.RobustScaler().fit_transform(x),
    "normalize": lambda x: preprocessing.normalize(x),
    "normalize in place": lambda x: preprocessing.normalize(x, copy=False),
    "polynomial": lambda x: preprocessing.PolynomialFeatures(2).fit_transform(x),
    "quantile": lambda x: preprocessing.QuantileTransformer(
        n_quantiles=20, random_state=0
    ).fit_transform(x),
    "power": lambda x: preprocessing.PowerTransformer().fit_transform(x),
    "bins": lambda x: preprocessing.KBinsDiscretizer(
        4, encode="ordinal", quantile_method="averaged_inverted_cdf"
    ).fit_transform(x),
    "spline": lambda x: preprocessing.SplineTransformer(4).fit_transform(x),
    "pca": lambda x: decomposition.PCA(3).fit_transform(x),
    "svd": lambda x: decomposition.TruncatedSVD(2, random_state=0).fit_transform(x),
    "nmf": lambda x: decomposition.NMF(2, max_iter=10, random_state=0).fit_transform(
        handed(np.abs(x) + 1)
    ),
    "ica": lambda x: decomposition.FastICA(2, random_state=0).fit_transform(x),
    "kmeans": lambda x: cluster.KMeans(3, n_init=1, random_state=0).fit_transform(x),
    "dbscan": lambda x: cluster.DBSCAN().fit_predict(x[:500]),
    "ward": lambda x: cluster.AgglomerativeClustering(3).fit_predict(x[:300]),
    "birch": lambda x: cluster.Birch().fit_predict(x[:300]),
    "mean shift": lambda x: cluster.MeanShift(bandwidth=2.0).fit_predict(x[:50]),
    "mixture": lambda x: mixture.GaussianMixture(2, random_state=0).fit_predict(x),
    "neighbors": lambda x: neighbors.NearestNeighbors().fit(x[:500]).kneighbors(x)[0],
    "lle": lambda x: manifold.MDS(
        n_init=1, max_iter=5, random_state=0, init="random"
    ).fit_transform(x[:40]),
    "distances": lambda x: metrics.pairwise_distances(x[:300]),
    "argmin": lambda x: metrics.pairwise_distances_argmin(x, x[:20]),
    "rbf": lambda x: metrics.pairwise.rbf_kernel(x[:300]),
    "silhouette": lambda x: metrics.silhouette_score(x[:300], classes(x[:300])),
    "auc": lambda x: metrics.roc_auc_score(classes(x), x[:, 0]),
    "cross": lambda x: model_selection.cross_val_score(
        linear_model.Ridge(), x, x[:, 0], cv=3
    ),
}


@sizes
@dtypes("f8", "f4")
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transform(name, shape, dtype):
    if dtype == "f4" and shape[0] == 50:
        pytest.skip("the two larger sizes will do")

    def work():
        x = pending(shape, dtype)
        before = handed(x - 1)
        return quietly(lambda: TRANSFORMS[name](x)), x, before

    assert_same(work)


def test_in_place_on_an_operand():
    def work():
        a = regular((900, 10))
        x = handed(a * 2)
        preprocessing.StandardScaler(copy=False).fit_transform(a)
        return a, x

    assert_same(work)


def test_threads():
    def work():
        x = pending((900, 10))
        return in_threads(lambda: metrics.pairwise_distances(x, n_jobs=1))

    assert_same(work)


def test_processes():
    """joblib's workers get the arrays pickled, or as a mapped file."""

    def work():
        x = positive((900, 300))
        return model_selection.cross_val_score(
            linear_model.Ridge(), x, x[:, 0], cv=2, n_jobs=2
        )

    assert_same(work)
