/* Foreign code with something to lose when a callback fails, and foreign code that changes the machine's state. */
#if defined(__linux__)
#define _GNU_SOURCE
#endif
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#if defined(__linux__)
#include <ucontext.h>
#endif

/* Holds a block of memory across a callback, whatever becomes of that. `held` counts the blocks there are, `cleaned_up` those that were given back
   intact. */
int foreign_call_back_holding(int (*callback)(int), int x, int *held, int *cleaned_up) {
    enum { SIZE = 1000 };
    unsigned char *block = malloc(SIZE);
    if (!block) return -1;
    memset(block, x & 0xFF, SIZE);
    *held += 1;
    int result = callback(x);
    int intact = 1;
    for (int i = 0; i < SIZE; i++) intact &= block[i] == (unsigned char)(x & 0xFF);
    free(block);
    *held -= 1;
    *cleaned_up += intact;
    return result;
}

/* `callback(x)` from a stack that is not the thread's own. -1 where there is no such thing. */
#if defined(__linux__)
struct elsewhere {
    int (*callback)(int);
    int x, result;
};
static _Thread_local struct elsewhere *elsewhere;
static void enter_elsewhere(void) { elsewhere->result = elsewhere->callback(elsewhere->x); }

int foreign_call_back_on_another_stack(int (*callback)(int), int x) {
    enum { SIZE = 512 * 1024 };
    ucontext_t here, there;
    struct elsewhere task = {callback, x, -1}, *before = elsewhere;
    void *stack = malloc(SIZE);
    if (!stack || getcontext(&there) != 0) return -1;
    there.uc_stack.ss_sp = stack;
    there.uc_stack.ss_size = SIZE;
    there.uc_link = &here;
    makecontext(&there, enter_elsewhere, 0);
    elsewhere = &task;
    int swapped = swapcontext(&here, &there);
    elsewhere = before;
    free(stack);
    return swapped == 0 ? task.result : -1;
}

/* Stops in the middle of a function on a stack of its own, goes on here with a callback, and lets the other one end. */
static _Thread_local ucontext_t *resume_here, *suspended;
static void call_back_and_suspend(void) {
    struct elsewhere *task = elsewhere;
    task->result = task->callback(task->x);
}
/* For the callback that runs on the other stack: comes back here, and returns when resumed. */
void foreign_suspend(void) { swapcontext(suspended, resume_here); }

int foreign_call_back_while_suspended(int (*there_callback)(int), int (*here_callback)(int), int x) {
    enum { SIZE = 512 * 1024 };
    ucontext_t here, there;
    struct elsewhere task = {there_callback, x, -1};
    void *stack = malloc(SIZE);
    if (!stack || getcontext(&there) != 0) return -1;
    there.uc_stack.ss_sp = stack;
    there.uc_stack.ss_size = SIZE;
    there.uc_link = &here;
    makecontext(&there, call_back_and_suspend, 0);
    elsewhere = &task;
    resume_here = &here;
    suspended = &there;
    swapcontext(&here, &there); /* until it suspends itself */
    int result = here_callback(x);
    swapcontext(&here, &there); /* until it ends */
    free(stack);
    return result + task.result;
}
#else
int foreign_call_back_on_another_stack(int (*callback)(int), int x) { return (void)callback, (void)x, -1; }
void foreign_suspend(void) {}
int foreign_call_back_while_suspended(int (*there_callback)(int), int (*here_callback)(int), int x) {
    return (void)there_callback, (void)here_callback, (void)x, -1;
}
#endif

/* The machine's state as foreign code sees it: the control words of floating-point arithmetic, and whether SIGUSR1 is blocked. */
struct foreign_machine {
    uint64_t float_control, x87_control;
    int blocked;
};

void foreign_machine(struct foreign_machine *out) {
    sigset_t mask;
    memset(out, 0, sizeof *out);
#if defined(__x86_64__)
    uint32_t mxcsr;
    uint16_t x87;
    __asm__ volatile("stmxcsr %0" : "=m"(mxcsr));
    __asm__ volatile("fnstcw %0" : "=m"(x87));
    out->float_control = mxcsr & 0xFFC0;
    out->x87_control = x87;
#elif defined(__aarch64__)
    __asm__ volatile("mrs %0, fpcr" : "=r"(out->float_control));
#endif
    pthread_sigmask(SIG_SETMASK, NULL, &mask);
    out->blocked = sigismember(&mask, SIGUSR1);
}

/* Flushes denormals to zero, rounds upwards, lowers the x87 precision. */
void foreign_change_float(void) {
#if defined(__x86_64__)
    uint32_t mxcsr;
    uint16_t x87;
    __asm__ volatile("stmxcsr %0" : "=m"(mxcsr));
    mxcsr |= 0x8040 | 0x4000; /* FTZ, DAZ, round up */
    __asm__ volatile("ldmxcsr %0" : : "m"(mxcsr));
    __asm__ volatile("fnstcw %0" : "=m"(x87));
    x87 &= (uint16_t)~0x0300; /* single precision */
    __asm__ volatile("fldcw %0" : : "m"(x87));
#elif defined(__aarch64__)
    uint64_t fpcr;
    __asm__ volatile("mrs %0, fpcr" : "=r"(fpcr));
    fpcr |= (1u << 24) | (1u << 22); /* FZ, round up */
    __asm__ volatile("msr fpcr, %0" : : "r"(fpcr));
#endif
}

void foreign_block_signal(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
}

/* Half of a number: what arithmetic makes of it. */
double foreign_halve(double x) {
    volatile double dividend = x, divisor = 2.0;
    return dividend / divisor;
}

/* Changes all of it, calls back, and says whether the state is still what it made it: the callback's result, or -1. */
int foreign_change_machine_and_call_back(int (*callback)(int), int x) {
    struct foreign_machine before, after;
    foreign_change_float();
    foreign_block_signal();
    foreign_machine(&before);
    int result = callback(x);
    foreign_machine(&after);
    return memcmp(&before, &after, sizeof before) == 0 ? result : -1;
}

/* Runs `f(data)` on a thread with exactly so much stack, and a page below it that faults. 0, or -1 if there is no such thread. */
struct small_task {
    void (*f)(void *);
    void *data;
};
static void *run_small_task(void *data) {
    struct small_task *task = data;
    task->f(task->data);
    return NULL;
}
int foreign_thread_with_stack(size_t size, void (*f)(void *), void *data) {
    size_t guard = (size_t)sysconf(_SC_PAGESIZE);
    struct small_task task = {f, data};
    pthread_attr_t attributes;
    pthread_t thread;
    char *memory = mmap(NULL, guard + size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return -1;
    mprotect(memory, guard, PROT_NONE);
    pthread_attr_init(&attributes);
    int failed = pthread_attr_setstack(&attributes, memory + guard, size) != 0 ||
                 pthread_create(&thread, &attributes, run_small_task, &task) != 0;
    pthread_attr_destroy(&attributes);
    if (!failed) pthread_join(thread, NULL);
    munmap(memory, guard + size);
    return failed ? -1 : 0;
}
