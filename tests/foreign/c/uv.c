/* libuv: its worker pool calls in on threads the VM has never seen, its loop on the thread that runs it. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdlib.h>
#include <uv.h>

struct item {
    uv_work_t request;
    int (*work)(int);
    int (*after)(int);
    int number;
    int64_t sum;
};

static void work(uv_work_t *request) {
    struct item *item = request->data;
    item->sum += item->work(item->number);
}

static void after(uv_work_t *request, int status) {
    struct item *item = request->data;
    if (status == 0) item->sum += item->after(item->number);
}

/* Gives `count` items to the pool and runs a loop until all are done: `work(i)` on the pool's threads, `after(i)` on this one. Returns the sum of all results, or -1. */
int64_t foreign_uv(int count, int (*on_pool)(int), int (*on_loop)(int)) {
    uv_loop_t loop;
    struct item *items = calloc((size_t)count, sizeof *items);
    int64_t sum = 0;
    if (items == NULL || uv_loop_init(&loop) != 0) return -1;
    for (int i = 0; i < count; i++) {
        items[i].request.data = &items[i];
        items[i].work = on_pool;
        items[i].after = on_loop;
        items[i].number = i;
        if (uv_queue_work(&loop, &items[i].request, work, after) != 0) return -1;
    }
    uv_run(&loop, UV_RUN_DEFAULT);
    if (uv_loop_close(&loop) != 0) return -1;
    for (int i = 0; i < count; i++) sum += items[i].sum;
    free(items);
    return sum;
}

/* Ends the pool's threads. The library must not be used after. */
void foreign_uv_end(void) { uv_library_shutdown(); }
