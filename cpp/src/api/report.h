// How a failed call is told to the caller: a status, and the sentence of selm_last_error().
#pragma once

#include "base/status.h"
#include "selm/selm.h"

namespace selm::api {

selm_status report(const Status& status);
selm_status invalid(const char* what);  // the caller's mistake

}  // namespace selm::api
