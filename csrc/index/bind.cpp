// stair_kernels._index: the search engine over NumPy buffers. Arguments are checked by stair_kernels/index.py; what the
// engine refuses arrives in Python as ValueError.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

#include "build.h"
#include "names.h"
#include "reorder.h"
#include "search.h"

namespace py = pybind11;

namespace {

template <class T>
using Converted = py::array_t<T, py::array::c_style | py::array::forcecast>;

template <class Term>
stair::Rows make_rows(const Converted<int64_t>& starts, const Converted<Term>& terms, const Converted<float>& weights,
                      int64_t vocab_size, bool padded) {
  if (starts.size() < 1 || terms.size() != weights.size()) {
    stair::fail("expected n_rows + 1 row pointers and as many indices as weights, got ", starts.size(), ", ",
                terms.size(), " and ", weights.size());
  }
  stair::RowsView<Term> view{starts.data(), terms.data(), weights.data(), starts.size() - 1,
                             terms.size(),  vocab_size,   padded};
  py::gil_scoped_release release;
  return stair::Rows(view);
}

stair::Rows rows_of(const Converted<int64_t>& starts, const py::array& terms, const Converted<float>& weights,
                    int64_t vocab_size, bool padded) {
  if (terms.dtype().is(py::dtype::of<int32_t>())) return make_rows<int32_t>(starts, terms, weights, vocab_size, padded);
  return make_rows<int64_t>(starts, terms, weights, vocab_size, padded);
}

// The terms and weights of a row.
py::tuple row_of(const stair::Rows& rows, int64_t number) {
  if (number < 0 || number >= rows.size()) stair::fail("expected a row number, got ", number);
  const int64_t first = rows.starts[number], size = rows.starts[number + 1] - first;
  return py::make_tuple(py::array_t<int32_t>(size, rows.terms.data() + first),
                        py::array_t<float>(size, rows.weights.data() + first));
}

py::dtype half() { return py::dtype("float16"); }

py::dict build(const stair::Rows& rows, const Converted<int64_t>& order, bool compact) {
  if (order.size() != rows.size()) stair::fail("order: expected one entry per row");
  for (py::ssize_t i = 0; i < order.size(); i++) {
    if (order.data()[i] < 0 || order.data()[i] >= rows.size()) stair::fail("order: expected row numbers");
  }
  const py::ssize_t N = rows.size(), V = rows.vocab_size, P = static_cast<py::ssize_t>(rows.terms.size());
  const bool wide = V > stair::kNarrowTerms;
  py::array row_starts(P > stair::kNarrowPostings ? py::dtype::of<int64_t>() : py::dtype::of<uint32_t>(), N + 1);
  py::array_t<int64_t> term_starts(V + 1);
  py::array row_terms(wide ? py::dtype::of<int32_t>() : py::dtype::of<uint16_t>(), P);
  py::array row_weights(compact ? half() : py::dtype::of<float>(), P);
  py::array_t<uint32_t> segments({V, static_cast<py::ssize_t>(stair::count_ranges(N) + 1)});
  py::array_t<uint16_t> documents(P);
  py::array_t<uint8_t> codes(P);
  py::array_t<float> units(V);
  const std::vector<int32_t> frequent = stair::frequent_terms(rows, compact);
  const py::ssize_t F = static_cast<py::ssize_t>(frequent.size()), chunks = stair::count_chunks(N);
  py::array_t<int32_t> frequent_terms(F);
  py::array_t<float> frequent_means(F);
  py::array_t<uint8_t> block_max({F, chunks * stair::kChunkBlocks});
  py::array_t<uint64_t> groups({F, chunks * stair::kChunkGroups, py::ssize_t{2}});
  std::memset(block_max.mutable_data(), 0, block_max.nbytes());
  std::memset(groups.mutable_data(), 0, groups.nbytes());
  stair::NewLayout out{};
  out.row_starts = row_starts.mutable_data();
  out.row_terms = row_terms.mutable_data();
  out.row_weights = row_weights.mutable_data();
  out.half_weights = compact;
  out.term_starts = term_starts.mutable_data();
  out.segments = segments.mutable_data();
  out.documents = documents.mutable_data();
  out.codes = codes.mutable_data();
  out.units = units.mutable_data();
  out.frequent_terms = frequent_terms.mutable_data();
  out.frequent_means = frequent_means.mutable_data();
  out.block_max = block_max.mutable_data();
  out.groups = reinterpret_cast<stair::Group*>(groups.mutable_data());
  {
    const int64_t* order_data = order.data();
    py::gil_scoped_release release;
    stair::build(rows, order_data, frequent, out);
  }
  using namespace py::literals;
  return py::dict("row_starts"_a = row_starts, "row_terms"_a = row_terms, "row_weights"_a = row_weights,
                  "term_starts"_a = term_starts, "segments"_a = segments, "documents"_a = documents, "codes"_a = codes,
                  "units"_a = units, "frequent_terms"_a = frequent_terms, "frequent_means"_a = frequent_means,
                  "block_max"_a = block_max, "groups"_a = groups);
}

py::array_t<int64_t> cluster(const stair::Rows& rows) {
  std::vector<int64_t> order;
  {
    py::gil_scoped_release release;
    order = stair::cluster(rows);
  }
  return py::array_t<int64_t>(static_cast<py::ssize_t>(order.size()), order.data());
}

using Starts = py::array_t<int64_t, py::array::c_style>;
using Bytes = py::array_t<uint8_t, py::array::c_style>;

stair::Names names_of(const Starts& starts, const Bytes& bytes) {
  if (starts.size() < 1) stair::fail("expected n + 1 starts of names, got none");
  return {starts.data(), reinterpret_cast<const char*>(bytes.data()), starts.size() - 1, bytes.size()};
}

py::array_t<int32_t> sort_names(const Starts& starts, const Bytes& bytes) {
  const stair::Names names = names_of(starts, bytes);
  if (names.n > stair::kMaxInt32) stair::fail("expected at most ", stair::kMaxInt32, " names, got ", names.n);
  std::vector<int32_t> order;
  {
    py::gil_scoped_release release;
    order = stair::sort_names(names);
  }
  return py::array_t<int32_t>(static_cast<py::ssize_t>(order.size()), order.data());
}

py::array_t<int64_t> find_names(const Starts& starts, const Bytes& bytes,
                                const py::array_t<int32_t, py::array::c_style>& order, const Starts& wanted_starts,
                                const Bytes& wanted_bytes) {
  const stair::Names names = names_of(starts, bytes), wanted = names_of(wanted_starts, wanted_bytes);
  if (order.size() != names.n) stair::fail("order: expected one entry per name");
  py::array_t<int64_t> found(wanted.n);
  {
    int64_t* found_data = found.mutable_data();
    py::gil_scoped_release release;
    stair::find_names(names, order.data(), wanted, found_data);
  }
  return found;
}

// Starts and bytes of the strings with these numbers, in this order.
py::tuple take_names(const Starts& starts, const Bytes& bytes, const Converted<int64_t>& numbers) {
  const stair::Names names = names_of(starts, bytes);
  for (py::ssize_t i = 0; i < numbers.size(); i++) {
    if (numbers.data()[i] < 0 || numbers.data()[i] >= names.n) stair::fail("numbers: expected numbers of strings");
  }
  Starts taken_starts(numbers.size() + 1);
  stair::start_taken(names, numbers.data(), numbers.size(), taken_starts.mutable_data());
  Bytes taken(taken_starts.data()[numbers.size()]);
  {
    char* to = reinterpret_cast<char*>(taken.mutable_data());
    py::gil_scoped_release release;
    stair::take_names(names, numbers.data(), numbers.size(), to);
  }
  return py::make_tuple(taken_starts, taken);
}

// The engine, and the arrays that it points into.
class BoundIndex {
 public:
  explicit BoundIndex(const py::dict& arrays) : arrays_(arrays), index_(layout_of(arrays)) {}

  py::tuple search(const stair::Rows& queries, int64_t k, int64_t n_threads,
                   const std::optional<py::array_t<uint64_t, py::array::c_style>>& allowed) {
    if (queries.vocab_size != index_.layout().vocab_size || k < 1 || n_threads < 1) {
      stair::fail("expected queries over the index's vocabulary, k >= 1 and n_threads >= 1");
    }
    if (allowed && allowed->size() != stair::ceil_div(index_.layout().n_documents, stair::kGroup)) {
      stair::fail("allowed: expected a bit for each document");
    }
    const uint64_t* allowed_data = allowed ? allowed->data() : nullptr;
    py::array_t<float> scores({queries.size(), k});
    py::array_t<int64_t> ids({queries.size(), k});
    {
      float* scores_data = scores.mutable_data();
      int64_t* ids_data = ids.mutable_data();
      py::gil_scoped_release release;
      index_.search(queries, k, n_threads, allowed_data, scores_data, ids_data);
    }
    return py::make_tuple(scores, ids);
  }

 private:
  static py::array array(const py::dict& arrays, const char* name) {
    if (!arrays.contains(name)) stair::fail("expected an array ", name);
    return py::cast<py::array>(arrays[name]);
  }

  // The data of a contiguous array of this type and shape: never a copy.
  static const void* data(const py::dict& arrays, const char* name, const py::dtype& dtype,
                          const std::vector<py::ssize_t>& shape) {
    const py::array found = array(arrays, name);
    const std::vector<py::ssize_t> got(found.shape(), found.shape() + found.ndim());
    if (got != shape || !found.dtype().equal(dtype) || !(found.flags() & py::array::c_style)) {
      stair::fail(name, ": expected another type or shape");
    }
    return found.data();
  }

  template <class T>
  static const T* data(const py::dict& arrays, const char* name, const std::vector<py::ssize_t>& shape) {
    return static_cast<const T*>(data(arrays, name, py::dtype::of<T>(), shape));
  }

  static stair::Layout layout_of(const py::dict& arrays) {
    const py::ssize_t N = std::max<py::ssize_t>(1, array(arrays, "row_starts").size()) - 1;
    const py::ssize_t V = array(arrays, "units").size();
    const py::ssize_t P = array(arrays, "codes").size(), R = stair::count_ranges(N);
    stair::Layout layout{};
    layout.n_documents = N, layout.vocab_size = V, layout.n_postings = P;
    layout.ids = arrays.contains("ids") ? data<int64_t>(arrays, "ids", {N}) : nullptr;
    layout.row_starts = layout.wide_starts() ? static_cast<const void*>(data<int64_t>(arrays, "row_starts", {N + 1}))
                                             : data<uint32_t>(arrays, "row_starts", {N + 1});
    layout.row_terms = layout.wide_terms() ? static_cast<const void*>(data<int32_t>(arrays, "row_terms", {P}))
                                           : data<uint16_t>(arrays, "row_terms", {P});
    layout.half_weights = array(arrays, "row_weights").dtype().equal(half());
    layout.row_weights = data(arrays, "row_weights", layout.half_weights ? half() : py::dtype::of<float>(), {P});
    layout.term_starts = data<int64_t>(arrays, "term_starts", {V + 1});
    layout.segments = data<uint32_t>(arrays, "segments", {V, R + 1});
    layout.documents = data<uint16_t>(arrays, "documents", {P});
    layout.codes = data<uint8_t>(arrays, "codes", {P});
    layout.units = data<float>(arrays, "units", {V});
    const py::ssize_t F = array(arrays, "frequent_terms").size(), chunks = stair::count_chunks(N);
    layout.n_frequent = F;
    layout.frequent_terms = data<int32_t>(arrays, "frequent_terms", {F});
    layout.frequent_means = data<float>(arrays, "frequent_means", {F});
    layout.block_max = data<uint8_t>(arrays, "block_max", {F, chunks * stair::kChunkBlocks});
    layout.groups =
        reinterpret_cast<const stair::Group*>(data<uint64_t>(arrays, "groups", {F, chunks * stair::kChunkGroups, 2}));
    return layout;
  }

  py::dict arrays_;
  stair::Index index_;
};

}  // namespace

PYBIND11_MODULE(_index, m) {
  m.doc() = "Exact top-k maximum inner product over inverted lists.";
  m.attr("RANGE") = stair::kRange;
  m.attr("CHUNK") = stair::kChunk;
  m.attr("CHUNK_BLOCKS") = stair::kChunkBlocks;
  m.attr("CHUNK_GROUPS") = stair::kChunkGroups;
  m.attr("NARROW_TERMS") = stair::kNarrowTerms;
  m.attr("NARROW_POSTINGS") = stair::kNarrowPostings;
  py::class_<stair::Rows>(m, "Rows")
      .def(py::init(&rows_of), py::arg("starts"), py::arg("terms"), py::arg("weights"), py::arg("vocab_size"),
           py::arg("padded"))
      .def_readonly("vocab_size", &stair::Rows::vocab_size)
      .def("row", &row_of, py::arg("number"))
      .def("__len__", &stair::Rows::size);
  m.def("build", &build, py::arg("rows"), py::arg("order"), py::arg("compact"));
  m.def("cluster", &cluster, py::arg("rows"));
  m.def("sort_names", &sort_names, py::arg("starts").noconvert(), py::arg("bytes").noconvert());
  m.def("find_names", &find_names, py::arg("starts").noconvert(), py::arg("bytes").noconvert(),
        py::arg("order").noconvert(), py::arg("wanted_starts").noconvert(), py::arg("wanted_bytes").noconvert());
  m.def("take_names", &take_names, py::arg("starts").noconvert(), py::arg("bytes").noconvert(), py::arg("numbers"));
  py::class_<BoundIndex>(m, "Index")
      .def(py::init<const py::dict&>(), py::arg("arrays"))
      .def("search", &BoundIndex::search, py::arg("queries"), py::arg("k"), py::arg("n_threads"),
           py::arg("allowed") = py::none());
}
