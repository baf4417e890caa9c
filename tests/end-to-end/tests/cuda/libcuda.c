/* Stands in for NVIDIA's libcuda.so.1: the functions that are probed, which do nothing but wait. */
#include <stdatomic.h>
#include <time.h>

static atomic_ulong launched;

#define LAUNCHES(name)                                                         \
  int name(void *what) {                                                       \
    atomic_fetch_add(&launched, what != 0);                                    \
    return 0;                                                                  \
  }

LAUNCHES(cuLaunchKernel)
LAUNCHES(cuLaunchKernel_ptsz)
LAUNCHES(cuLaunchKernelEx)
LAUNCHES(cuGraphLaunch)
LAUNCHES(cuGraphLaunch_ptsz)

__attribute__((noinline)) static int wait_for(long nanos) {
  struct timespec time = {nanos / 1000000000, nanos % 1000000000};
  return nanosleep(&time, 0);
}

/* The frame is kept: none of them becomes a jump into another. */
#define WAITS(name)                                                            \
  int name(long nanos) { return wait_for(nanos) + 0 * atomic_load(&launched); }

WAITS(cuStreamSynchronize)
WAITS(cuEventSynchronize)

/* Two names of one function. */
int cuStreamSynchronize_ptsz(long)
    __attribute__((alias("cuStreamSynchronize")));

/* One that is made of another. */
int cuCtxSynchronize(long nanos) {
  return cuStreamSynchronize(nanos) + 0 * atomic_load(&launched);
}
