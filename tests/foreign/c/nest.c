/* Callbacks on stacks that are not the thread's own, or that lie in a frame of the thread's own: of a coroutine, of a signal handler. With and without jumps.

   Compiled twice: once as C is compiled on this system, and once with BARE and no unwind tables, as some libraries are. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#ifdef BARE
#define NAME(name) foreign_bare_##name
/* A signal of its own for each of the two, whose handler stays: two threads may be in both at once. */
#define SIGNAL (SIGRTMIN + 6)
#else
#define NAME(name) foreign_##name
#define SIGNAL (SIGRTMIN + 5)
#endif

typedef int (*callback)(int, void *);
enum { BYTES = 256 * 1024, POINTS = 4 };

static _Thread_local jmp_buf points[POINTS];

/* The stack that `on_stack` uses, and whether it is a signal stack. */
static _Thread_local unsigned char *stack;
static _Thread_local int signals;

/* What runs on it. */
struct task {
    callback call;
    int x;
    void *data;
    int result;
    ucontext_t own, caller;
};
static _Thread_local struct task *task;

static void run(void) { task->result = task->call(task->x, task->data); }

static void handle(int signal) {
    (void)signal;
    run();
}

static int with(unsigned char *memory, int for_signals, callback call, int x, void *data) {
    stack_t mine = {.ss_sp = memory, .ss_size = BYTES}, before = {0};
    unsigned char *outer = stack;
    int outer_signals = signals;
    stack = memory;
    signals = for_signals;
    if (for_signals && sigaltstack(&mine, &before) != 0) return -10;
    int result = call(x, data);
    if (for_signals && sigaltstack(&before, NULL) != 0) return -11;
    stack = outer;
    signals = outer_signals;
    return result;
}

/* Calls back with a stack that lies in this very frame, for `on_stack` to use. */
int NAME(with_stack_in_frame)(int for_signals, callback call, int x, void *data) {
    unsigned char memory[BYTES];
    memset(memory, 0xDB, sizeof memory);
    int result = with(memory, for_signals, call, x, data);
    /* What is used of it must be here still. */
    __asm__ volatile("" : : "r"(memory) : "memory");
    return result;
}

/* The same with a stack that the system maps. */
int NAME(with_stack_on_heap)(int for_signals, callback call, int x, void *data) {
    unsigned char *memory = mmap(NULL, 4096 + BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, 4096, PROT_NONE) != 0) return -12;
    int result = with(memory + 4096, for_signals, call, x, data);
    munmap(memory, 4096 + BYTES);
    return result;
}

/* Calls back on the stack made last: in a coroutine that runs to its end, or in a handler. */
int NAME(on_stack)(callback call, int x, void *data) {
    struct task mine = {.call = call, .x = x, .data = data, .result = -13}, *outer = task;
    task = &mine;
    if (signals) {
        struct sigaction action = {.sa_handler = handle, .sa_flags = SA_ONSTACK | SA_NODEFER};
        if (sigaction(SIGNAL, &action, NULL) != 0) return -14;
        raise(SIGNAL);
    } else {
        getcontext(&mine.own);
        mine.own.uc_stack.ss_sp = stack;
        mine.own.uc_stack.ss_size = BYTES;
        mine.own.uc_link = &mine.caller;
        makecontext(&mine.own, run, 0);
        swapcontext(&mine.caller, &mine.own);
    }
    task = outer;
    return mine.result;
}

/* Calls back with a point to jump to, and once more after the jump. Returns what the second callback does, or -2 if there was no jump. */
int NAME(land_twice)(int point, callback first, callback next, int x, void *data) {
    struct task *outer = task;
    if (setjmp(points[point]) == 0) {
        first(x, data);
        return -2;
    }
    task = outer;
    int result = next ? next(x, data) : -1;
    return result;
}

void NAME(jump_to)(int point) { longjmp(points[point], 1); }
