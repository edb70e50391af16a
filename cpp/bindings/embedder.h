// Vectors of texts: _core.StaticEmbedder.
#pragma once

#include <pybind11/pybind11.h>

namespace selm_python {

void add_embedder(pybind11::module_& module);

}  // namespace selm_python
