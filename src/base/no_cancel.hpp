// While it lives, the calling thread is not cancelled (pthread_cancel): for cold sections that hold a lock or an owner word, or are half done, and make
// libc calls that are cancellation points. Hot ones make raw system calls instead (base/raw_syscall.hpp).
#pragma once
#include <pthread.h>

namespace icepath {

class no_cancel {
 public:
  no_cancel() { pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &old_); }
  ~no_cancel() { pthread_setcancelstate(old_, nullptr); }
  no_cancel(const no_cancel&) = delete;

 private:
  int old_ = PTHREAD_CANCEL_ENABLE;
};

}  // namespace icepath
