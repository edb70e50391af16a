#include "embedder.h"

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "handles.h"
#include "selm/selm.h"

namespace selm_python {
namespace {

using namespace py::literals;
using Vectors = py::typing::List<py::typing::Optional<py::bytes>>;

// The UTF-8 of a str, kept alive by what it returns in `owner`. A lone surrogate has no UTF-8: its three
// bytes are wrong and the core leaves them out.
std::string_view utf8_of(const py::handle& text, py::object* owner) {
  if (!py::isinstance<py::str>(text)) throw py::type_error("texts are str");
  Py_ssize_t size = 0;
  const char* bytes = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
  if (bytes != nullptr) {
    *owner = py::reinterpret_borrow<py::object>(text);
    return {bytes, static_cast<size_t>(size)};
  }
  PyErr_Clear();
  PyObject* encoded = PyUnicode_AsEncodedString(text.ptr(), "utf-8", "surrogatepass");
  if (encoded == nullptr) throw py::error_already_set();
  *owner = py::reinterpret_steal<py::object>(encoded);
  return {PyBytes_AS_STRING(encoded), static_cast<size_t>(PyBytes_GET_SIZE(encoded))};
}

class StaticEmbedder {
 public:
  explicit StaticEmbedder(const Path& given) {
    const auto path = py::cast<std::string>(given);
    const py::gil_scoped_release release;
    selm_embedder* opened = nullptr;
    check(selm_embedder_open(path.c_str(), &opened));
    handle_.reset(opened);
  }

  uint32_t dim() const { return selm_embedder_dimension(handle_.get()); }

  Vectors embed(const py::typing::List<py::str>& texts) const {
    // The list and the texts belong to other threads too, once the GIL is released.
    std::vector<py::object> owners(texts.size());
    std::vector<std::string_view> views;
    for (size_t i = 0; i < owners.size(); ++i) views.push_back(utf8_of(texts[i], &owners[i]));

    const size_t n = dim();
    std::vector<float> vectors(views.size() * n);
    const auto found = std::make_unique<bool[]>(views.size());
    {
      const py::gil_scoped_release release;
      for (size_t i = 0; i < views.size(); ++i) {
        check(selm_embedder_embed(handle_.get(), views[i].data(), views[i].size(), vectors.data() + i * n,
                                  &found[i]));
      }
    }
    Vectors out(views.size());
    for (size_t i = 0; i < views.size(); ++i) {
      const auto* bytes = reinterpret_cast<const char*>(vectors.data() + i * n);
      if (found[i]) {
        out[i] = py::bytes(bytes, n * sizeof(float));
      } else {
        out[i] = py::none();
      }
    }
    return out;
  }

 private:
  struct Free {
    void operator()(selm_embedder* embedder) const { selm_embedder_free(embedder); }
  };
  std::unique_ptr<selm_embedder, Free> handle_;  // calls that run keep the Python object, and so this
};

}  // namespace

void add_embedder(py::module_& module) {
  py::class_<StaticEmbedder>(module, "StaticEmbedder")
      .def(py::init<const Path&>(), "path"_a)
      .def_property_readonly("dim", &StaticEmbedder::dim, "Numbers of a vector.")
      .def("embed", &StaticEmbedder::embed, "texts"_a,
           "For each text float32 [dim] of length 1, little-endian; None where no token of it is known.");
}

}  // namespace selm_python
