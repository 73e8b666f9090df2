// stair_kernels._index: the search engine over NumPy buffers. Arguments are checked by stair_kernels/index.py; what the
// engine refuses arrives in Python as ValueError.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <stdexcept>

#include "engine.h"

namespace py = pybind11;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;

template <class T>
using Converted = py::array_t<T, py::array::c_style | py::array::forcecast>;

stair::Rows make_rows(const Converted<int64_t>& starts, const Converted<int64_t>& terms,
                      const Converted<float>& weights, int64_t vocab_size, bool padded) {
  if (starts.size() < 1 || terms.size() != weights.size()) {
    throw std::invalid_argument("expected n_rows + 1 row pointers and as many indices as weights, got " +
                                std::to_string(starts.size()) + ", " + std::to_string(terms.size()) + " and " +
                                std::to_string(weights.size()));
  }
  stair::RowsView view{starts.data(), terms.data(), weights.data(), starts.size() - 1,
                       terms.size(),  vocab_size,   padded};
  py::gil_scoped_release release;
  return stair::Rows(view);
}

py::tuple invert(const stair::Rows& rows, const Converted<int64_t>& order) {
  if (order.size() != rows.size()) throw std::invalid_argument("order: expected one entry per row");
  for (py::ssize_t i = 0; i < order.size(); i++) {
    if (order.data()[i] < 0 || order.data()[i] >= rows.size()) {
      throw std::invalid_argument("order: expected row numbers");
    }
  }
  Array<int64_t> offsets(rows.vocab_size + 1);
  Array<int32_t> documents(static_cast<py::ssize_t>(rows.terms.size()));
  Array<float> weights(static_cast<py::ssize_t>(rows.terms.size()));
  {
    const int64_t* order_data = order.data();
    int64_t* offsets_data = offsets.mutable_data();
    int32_t* documents_data = documents.mutable_data();
    float* weights_data = weights.mutable_data();
    py::gil_scoped_release release;
    stair::invert(rows, order_data, offsets_data, documents_data, weights_data);
  }
  return py::make_tuple(offsets, documents, weights);
}

stair::Index make_index(const Array<int64_t>& ids, const Array<int64_t>& offsets, const Array<int32_t>& documents,
                        const Array<float>& weights) {
  if (offsets.size() < 1 || documents.size() != weights.size()) {
    throw std::invalid_argument("expected V + 1 offsets and as many documents as weights");
  }
  return stair::Index(ids.data(), ids.size(), offsets.data(), offsets.size() - 1, documents.data(), weights.data(),
                      weights.size());
}

py::tuple search(const stair::Index& index, const stair::Rows& queries, int64_t k, int64_t n_threads) {
  if (queries.vocab_size != index.vocab_size() || k < 1 || n_threads < 1) {
    throw std::invalid_argument("expected queries over the index's vocabulary, k >= 1 and n_threads >= 1");
  }
  Array<float> scores({queries.size(), k});
  Array<int64_t> ids({queries.size(), k});
  {
    float* scores_data = scores.mutable_data();
    int64_t* ids_data = ids.mutable_data();
    py::gil_scoped_release release;
    index.search(queries, k, n_threads, scores_data, ids_data);
  }
  return py::make_tuple(scores, ids);
}

}  // namespace

PYBIND11_MODULE(_index, m) {
  m.doc() = "Exact top-k maximum inner product over inverted lists.";
  py::class_<stair::Rows>(m, "Rows")
      .def(py::init(&make_rows), py::arg("starts"), py::arg("terms"), py::arg("weights"), py::arg("vocab_size"),
           py::arg("padded"))
      .def_readonly("vocab_size", &stair::Rows::vocab_size)
      .def("__len__", &stair::Rows::size);
  m.def("invert", &invert, py::arg("rows"), py::arg("order"));
  // noconvert: the index points into the arrays that were passed, which keep_alive holds, never into a copy.
  py::class_<stair::Index>(m, "Index")
      .def(py::init(&make_index), py::arg("ids").noconvert(), py::arg("offsets").noconvert(),
           py::arg("documents").noconvert(), py::arg("weights").noconvert(), py::keep_alive<1, 2>(),
           py::keep_alive<1, 3>(), py::keep_alive<1, 4>(), py::keep_alive<1, 5>())
      .def("search", &search, py::arg("queries"), py::arg("k"), py::arg("n_threads"));
}
