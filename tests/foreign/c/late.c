/* Upcalls when a thread, or the process, is nearly gone. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

struct visit {
    int (*callback)(int);
    pthread_key_t key;
    int calls_before;
    int result;
};

static void destroy(void *data) {
    struct visit *visit = data;
    visit->result = visit->callback(7);
}

static void *run(void *data) {
    struct visit *visit = data;
    pthread_setspecific(visit->key, visit);
    for (int i = 0; i < visit->calls_before; i++) visit->callback(i);
    return NULL;
}

/* A thread calls back `calls_before` times, and once more in a destructor of its thread-specific data, with 7: the result of that. */
int foreign_call_back_in_destructor(int (*callback)(int), int calls_before) {
    struct visit visit = {callback, 0, calls_before, -1000};
    pthread_t id;
    if (pthread_key_create(&visit.key, destroy) != 0) return -1001;
    if (pthread_create(&id, NULL, run, &visit) != 0) return -1002;
    pthread_join(id, NULL);
    pthread_key_delete(visit.key);
    return visit.result;
}

static int (*at_exit)(int);

static void say(void) {
    printf("at exit: %d\n", at_exit(7));
    fflush(stdout);
}

/* Has the process call back at its exit, with 7, and print the result. */
void foreign_call_back_at_exit(int (*callback)(int)) {
    at_exit = callback;
    atexit(say);
}
