// Works for ever, three times as long in one function as in another, and calls the kernel between.
#include <fcntl.h>
#include <unistd.h>

static volatile unsigned long sink;

__attribute__((noinline)) void hot_function(void) {
    for (unsigned long i = 0; i < 3000000; i++) sink += i;
}

__attribute__((noinline)) void cold_function(void) {
    for (unsigned long i = 0; i < 1000000; i++) sink += i;
}

__attribute__((noinline)) void kernel_function(int file, char *buffer, unsigned long size) {
    for (int i = 0; i < 100; i++)
        if (read(file, buffer, size) < 0) _exit(1);
}

int main(void) {
    static char buffer[65536];
    int file = open("/dev/zero", O_RDONLY);
    for (;;) {
        hot_function();
        cold_function();
        kernel_function(file, buffer, sizeof buffer);
    }
}
