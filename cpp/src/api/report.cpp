#include "api/report.h"

#include <string>

namespace selm::api {
namespace {

// The one piece of state outside the handles: what went wrong last in this thread.
thread_local std::string last_error;

}  // namespace

selm_status report(const Status& status) {
  if (!status.ok()) last_error = status.message();
  return static_cast<selm_status>(status.code());
}

selm_status invalid(const char* what) { return report(error(Code::invalid_argument, "%s", what)); }

}  // namespace selm::api

const char* selm_last_error(void) { return selm::api::last_error.c_str(); }
