/* Does what its stdin says with the CUDA library that its argument names, and answers each line
   with how many nanoseconds it took. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static long now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * 1000000000 + time.tv_nsec;
}

int main(int count, char **arguments) {
  void *library = 0;
  char name[64];
  long argument, times;
  if (count < 2)
    return 1;
  while (scanf("%63s %ld %ld", name, &argument, &times) == 3) {
    long took = 0;
    if (!strcmp(name, "load")) {
      library = dlopen(arguments[1], RTLD_NOW);
      if (!library) {
        fprintf(stderr, "%s\n", dlerror());
        return 2;
      }
    } else {
      int (*function)(long) = library ? dlsym(library, name) : 0;
      if (!function)
        return 3;
      for (long i = 0; i != times; i++) {
        long began = now();
        function(argument);
        took += now() - began;
      }
    }
    printf("%ld\n", took);
    fflush(stdout);
  }
  return 0;
}
