// The ways by which modules made with pybind11 reach the values of arrays.

#include <complex>

#include <pybind11/complex.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

namespace py = pybind11;

static double
sum_data(py::array_t<double> a)
{
    const double *p = a.data();
    double total = 0;
    for (py::ssize_t i = 0; i < a.size(); i++) {
        total += p[i];
    }
    return total;
}

static double
sum_nogil(py::array_t<double, py::array::c_style> a)
{
    const double *p = a.data();
    py::ssize_t n = a.size();
    py::gil_scoped_release released;
    double total = 0;
    for (py::ssize_t i = 0; i < n; i++) {
        total += p[i];
    }
    return total;
}

static double
sum_unchecked(py::array_t<double> a)
{
    auto values = a.unchecked<2>();
    double total = 0;
    for (py::ssize_t i = 0; i < values.shape(0); i++) {
        for (py::ssize_t j = 0; j < values.shape(1); j++) {
            total += values(i, j);
        }
    }
    return total;
}

static void
scale_mutable(py::array_t<double, 0> a, double factor)
{
    auto values = a.mutable_unchecked<2>();
    for (py::ssize_t i = 0; i < values.shape(0); i++) {
        for (py::ssize_t j = 0; j < values.shape(1); j++) {
            values(i, j) *= factor;
        }
    }
}

static void
scale_data(py::array_t<double, 0> a, double factor)
{
    double *p = a.mutable_data();
    for (py::ssize_t i = 0; i < a.size(); i++) {
        p[i] *= factor;
    }
}

static double
sum_buffer(py::buffer b)
{
    py::buffer_info info = b.request();
    const double *p = static_cast<double *>(info.ptr);
    double total = 0;
    for (py::ssize_t i = 0; i < info.size; i++) {
        total += p[i];
    }
    return total;
}

PYBIND11_MODULE(_pybind_module, m)
{
    m.def("sum_data", sum_data);
    m.def("sum_nogil", sum_nogil);
    m.def("sum_unchecked", sum_unchecked);
    m.def("scale_mutable", scale_mutable, py::arg().noconvert(), py::arg());
    m.def("scale_data", scale_data, py::arg().noconvert(), py::arg());
    m.def("sum_buffer", sum_buffer);
    m.def("hypot", py::vectorize([](double a, double b) { return a * a + b * b; }));
    m.def("conjugate", py::vectorize([](std::complex<double> a) { return std::conj(a); }));
}
