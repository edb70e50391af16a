// Lines for the host's log (selm_log): formatted on the stack, so that a reply allocates nothing.
#pragma once

#include <algorithm>
#include <cstdarg>
#include <cstdio>

#include "selm/selm.h"

namespace selm::api {

[[gnu::format(printf, 3, 4)]] inline void tell(const selm_log& log, selm_log_level level, const char* format,
                                               ...) {
  if (log.write == nullptr) return;
  char text[512];
  va_list args;
  va_start(args, format);
  const int wanted = std::vsnprintf(text, sizeof text, format, args);
  va_end(args);
  if (wanted >= 0) log.write(log.user, level, text, std::min(static_cast<size_t>(wanted), sizeof text - 1));
}

}  // namespace selm::api
