// Waits twenty times for 50 ms in a function of its own, once a line has come; then until its input ends.

#define _GNU_SOURCE
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

// The call itself, without a library's function between, whose frame would be missing.
__attribute__((noinline)) void wait_here(const struct timespec *time) {
#ifdef __x86_64__
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"((long)SYS_nanosleep), "D"(time), "S"(0L)
                     : "rcx", "r11", "memory");
#else
    syscall(SYS_nanosleep, time, NULL);
#endif
}

int main(void) {
    char line[16];
    if (read(0, line, sizeof line) <= 0)
        return 1;
    struct timespec time = {0, 50000000};
    for (int i = 0; i < 20; i++)
        wait_here(&time);
    while (read(0, line, sizeof line) > 0)
        ;
    return 0;
}
