#include "kernels/layout.h"

#if defined(__x86_64__)
namespace selm::kernels {
const Table* avx2_table() { return nullptr; }
}  // namespace selm::kernels
#endif
