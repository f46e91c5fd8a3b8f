/* Threads the VM has never seen. */
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct task {
    int (*callback)(int);
    int calls;
    int64_t sum;
};

/* Leaves garbage where a conservative or careless scan would look. */
static void __attribute__((noinline)) dirty_stack(void) {
    volatile unsigned char junk[32 * 1024];
    memset((void *)junk, 0xDB, sizeof junk);
}

static void *work(void *data) {
    struct task *task = data;
    dirty_stack();
    for (int i = 0; i < task->calls; i++) task->sum += task->callback(i);
    return NULL;
}

/* Starts `threads` threads that call back `calls` times each, and joins them. Returns the sum of all results, or -1 if a thread could not be started. */
int64_t foreign_threads(int threads, int calls, int (*callback)(int)) {
    pthread_t *ids = calloc((size_t)threads, sizeof *ids);
    struct task *tasks = calloc((size_t)threads, sizeof *tasks);
    int64_t sum = 0;
    int started = 0;
    for (; started < threads; started++) {
        tasks[started].callback = callback;
        tasks[started].calls = calls;
        if (pthread_create(&ids[started], NULL, work, &tasks[started]) != 0) break;
    }
    for (int i = 0; i < started; i++) {
        pthread_join(ids[i], NULL);
        sum += tasks[i].sum;
    }
    free(ids);
    free(tasks);
    return started == threads ? sum : -1;
}

/* Calls back on a thread of its own while the caller waits: the callback runs elsewhere, the caller is in C. */
int foreign_call_back_elsewhere(int (*callback)(int), int x) {
    struct task task = {callback, 1, 0};
    pthread_t id;
    (void)x;
    if (pthread_create(&id, NULL, work, &task) != 0) return -1;
    pthread_join(id, NULL);
    return (int)task.sum;
}
