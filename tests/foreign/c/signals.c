/* Upcalls out of signal handlers, and calls that block until they are interrupted. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <unistd.h>

static int (*handler_callback)(int);
static int (*handler_may_call)(void);
static atomic_long served, passed;

static void on_signal(int signal) {
    int error = errno;
    (void)signal;
    if (handler_may_call()) {
        handler_callback(-1);
        atomic_fetch_add(&served, 1);
    } else {
        atomic_fetch_add(&passed, 1);
    }
    errno = error;
}

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_t victim;
static int alive;
static atomic_int over;
static atomic_int flooding;

static void *flood(void *data) {
    (void)data;
    atomic_fetch_add(&flooding, 1);
    while (!atomic_load(&over)) {
        pthread_mutex_lock(&lock);
        if (alive) pthread_kill(victim, SIGUSR1);
        pthread_mutex_unlock(&lock);
        sched_yield();
    }
    return NULL;
}

struct visit {
    int (*callback)(int);
    int calls;
};

static void *visit(void *data) {
    struct visit *visit = data;
    sigset_t set;
    long before = atomic_load(&served);
    pthread_mutex_lock(&lock);
    victim = pthread_self();
    alive = 1;
    pthread_mutex_unlock(&lock);
    for (int i = 0; i < visit->calls; i++) visit->callback(i);
    /* However busy the machine is, a visit lasts until a handler has called in. */
    while (atomic_load(&served) == before) sched_yield();
    pthread_mutex_lock(&lock);
    alive = 0;
    pthread_mutex_unlock(&lock);
    /* What is pending still comes here; then the thread exits in peace. */
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    return NULL;
}

/* `visits` threads, one after the other, call back `calls` times each, while `flooders` threads send them SIGUSR1, whose handler calls back too if `may_call()` says so.
   A visit ends when one has at the earliest. Returns how many handlers did; `*not` is how many did not. */
long foreign_flood(int flooders, int visits, int calls, int (*callback)(int), int (*may_call)(void), long *not) {
    struct sigaction action = {0}, before;
    struct visit task = {callback, calls};
    pthread_t ids[16];
    int started = 0;
    handler_callback = callback;
    handler_may_call = may_call;
    action.sa_handler = on_signal;
    action.sa_flags = SA_RESTART;
    sigaction(SIGUSR1, &action, &before);
    atomic_store(&served, 0);
    atomic_store(&passed, 0);
    atomic_store(&over, 0);
    atomic_store(&flooding, 0);
    for (; started < flooders && started < 16; started++)
        if (pthread_create(&ids[started], NULL, flood, NULL) != 0) break;
    while (atomic_load(&flooding) < started) sched_yield();
    for (int i = 0; i < visits; i++) {
        pthread_t id;
        if (pthread_create(&id, NULL, visit, &task) != 0) break;
        pthread_join(id, NULL);
    }
    atomic_store(&over, 1);
    for (int i = 0; i < started; i++) pthread_join(ids[i], NULL);
    sigaction(SIGUSR1, &before, NULL);
    *not = atomic_load(&passed);
    return atomic_load(&served);
}

/* Blocks until `fd` can be read, or `timeout` milliseconds have passed: poll(2)'s result. */
int foreign_poll(int fd, int timeout) {
    struct pollfd set = {fd, POLLIN, 0};
    return poll(&set, 1, timeout);
}
