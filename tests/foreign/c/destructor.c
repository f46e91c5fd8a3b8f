/* A shared library of its own, whose destructor ends a thread that calls back for the first time meanwhile: the dynamic loader's lock is held all that time. */
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

static int (*callback)(int);
static int *result;
static pthread_t thread;
static atomic_int ending;

static void *run(void *data) {
    (void)data;
    while (!atomic_load(&ending)) usleep(1000);
    *result = callback(5);
    return NULL;
}

/* Starts the thread. `*at` will be what the callback gives. */
int library_start(int (*function)(int), int *at) {
    callback = function;
    result = at;
    return pthread_create(&thread, NULL, run, NULL);
}

static void __attribute__((destructor)) end(void) {
    atomic_store(&ending, 1);
    pthread_join(thread, NULL);
}
