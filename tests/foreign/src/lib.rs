//! The C side of reentry's tests and benches: real foreign code, compiled by the `cc` crate.
//!
//! Every function is what its C source says; whoever calls one promises valid pointers and functions that may be called.

pub mod abi;

pub use reentry_needs::{needs_cpp, needs_libuv};

/// Whether the C++ side is there. Without it, its functions end the process with a message.
pub const CPP: bool = cfg!(cpp);

/// Takes the first form of a test if the C++ side is there, and the second if not: see [`needs_cpp`].
#[cfg(cpp)]
#[macro_export]
macro_rules! if_cpp {
    ({ $($there:tt)* } { $($missing:tt)* }) => { $($there)* };
}

/// Takes the first form of a test if the C++ side is there, and the second if not: see [`needs_cpp`].
#[cfg(not(cpp))]
#[macro_export]
macro_rules! if_cpp {
    ({ $($there:tt)* } { $($missing:tt)* }) => { $($missing)* };
}

/// Takes the first form of a test if libuv is there, and the second if not: see [`needs_libuv`].
#[cfg(libuv)]
#[macro_export]
macro_rules! if_libuv {
    ({ $($there:tt)* } { $($missing:tt)* }) => { $($there)* };
}

/// Takes the first form of a test if libuv is there, and the second if not: see [`needs_libuv`].
#[cfg(not(libuv))]
#[macro_export]
macro_rules! if_libuv {
    ({ $($there:tt)* } { $($missing:tt)* }) => { $($missing)* };
}

use core::ffi::{c_int, c_long, c_uchar, c_void};
use core::sync::atomic::{AtomicU32, AtomicU64};

/// A callback of one `int`.
pub type Callback = extern "C" fn(c_int) -> c_int;

/// What [`foreign_fill`] writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Pair {
    /// Written first.
    pub first: i64,
    /// Written second.
    pub second: i64,
}

/// What [`foreign_mirror`] mirrors.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
#[repr(C)]
pub struct Point {
    /// To the right.
    pub x: f64,
    /// Up.
    pub y: f64,
}

/// A struct too large for registers: what [`foreign_give_struct`] gives its callback.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Quad {
    /// Four words.
    pub words: [usize; 4],
}

/// A shared library, to be loaded: `int library_start(int (*)(int), int *)` starts a thread that calls back
/// when the library is unloaded, and stores the result.
pub const DESTRUCTOR_LIBRARY: &str = env!("FOREIGN_DESTRUCTOR_LIBRARY");

/// User data beside its callback, as a C library keeps them.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Entry {
    /// What [`foreign_fire`] calls.
    pub callback: Option<unsafe extern "C" fn(c_int, *mut c_void) -> c_int>,
    /// What it is given.
    pub user_data: *mut c_void,
}

/// A resource that knows whether it is open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Resource {
    /// 1 until [`foreign_close`].
    pub open: c_int,
    /// How often [`foreign_use`] has used it.
    pub uses: c_int,
}

/// The machine's state as C sees it: what [`foreign_machine`] writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Machine {
    /// MXCSR without its status flags, or FPCR.
    pub float_control: u64,
    /// The x87 control word.
    pub x87_control: u64,
    /// Whether SIGUSR1 is blocked: 0 or 1.
    pub blocked: c_int,
}

/// A callback of an `int` and a data pointer.
pub type DataCallback = unsafe extern "C" fn(c_int, *mut c_void) -> c_int;

/// The same, through which exceptions pass.
pub type UnwindDataCallback = unsafe extern "C-unwind" fn(c_int, *mut c_void) -> c_int;

/// A callback of eleven numbers and a data pointer, half of which are passed on the stack.
pub type WideCallback =
    unsafe extern "C" fn(i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, *mut c_void) -> i64;

/// A struct of 256 bytes, which is passed on the stack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Large {
    /// The number of each word.
    pub words: [i64; 32],
}

/// A callback of a large struct by value and a data pointer.
pub type LargeCallback = unsafe extern "C" fn(Large, *mut c_void) -> i64;

macro_rules! foreign {
    ($($(#[$meta:meta])* fn $name:ident($($argument:ident: $ty:ty),*) $(-> $result:ty)?;)*) => {
        unsafe extern "C" {
            $($(#[$meta])* pub fn $name($($argument: $ty),*) $(-> $result)?;)*
        }
    };
}

foreign! {
    /// The sum.
    fn foreign_add(a: c_int, b: c_int) -> c_int;
    /// The point with its coordinates exchanged.
    fn foreign_mirror(point: Point) -> Point;
    /// Does nothing.
    fn foreign_nothing();
    /// The word at an address; no tool asks what it belongs to.
    fn foreign_word(at: *const usize) -> usize;
    /// `callback(x)`.
    fn foreign_call_back(callback: Callback, x: c_int) -> c_int;
    /// `callback(x) + 1`: C that goes on after the callback.
    fn foreign_call_back_and_go_on(callback: Callback, x: c_int) -> c_int;
    /// `callback(x, data) + 1`.
    fn foreign_call_back_last_and_go_on(callback: unsafe extern "C" fn(c_int, *mut c_void) -> c_int, x: c_int, data: *mut c_void) -> c_int;
    /// `callback(x, data)`.
    fn foreign_call_back_last(callback: unsafe extern "C" fn(c_int, *mut c_void) -> c_int, x: c_int, data: *mut c_void) -> c_int;
    /// `callback(data, x)`.
    fn foreign_call_back_first(callback: unsafe extern "C" fn(*mut c_void, c_int) -> c_int, data: *mut c_void, x: c_int) -> c_int;
    /// The sum of `callback(0)` to `callback(count - 1)`.
    fn foreign_call_back_many(callback: Callback, count: c_int) -> i64;
    /// `callback(x)` from below 64 KiB of C frame; -1 if the frame was damaged.
    fn foreign_call_back_below_64k(callback: Callback, x: c_int) -> c_int;
    /// `callback(x)`, then adds one to `cleaned_up`.
    fn foreign_call_back_and_clean_up(callback: Callback, x: c_int, cleaned_up: *mut c_int) -> c_int;
    /// Sets `errno` and returns -1.
    fn foreign_fail(error: c_int) -> c_int;
    /// `callback(x)`, then sets `errno` and returns -1.
    fn foreign_call_back_then_fail(callback: Callback, x: c_int, error: c_int) -> c_int;
    /// Writes `callback(1)` and `callback(2)` to `out`.
    fn foreign_fill(out: *mut Pair, callback: Callback);
    /// The bytes `offset` behind what `slot` refers to, summed before and after `callback(0)`.
    fn foreign_sum_through_slot(slot: *const *mut c_void, offset: usize, length: usize, callback: Option<Callback>) -> u64;
    /// The bytes at an address, summed before and after `callback(0)`.
    fn foreign_sum_twice(bytes: *const c_uchar, length: usize, callback: Option<Callback>) -> u64;
    /// `give(take())` with `between(0)` in between.
    fn foreign_take_and_give(take: extern "C" fn() -> *mut c_void, between: Callback, give: extern "C" fn(*mut c_void) -> c_int) -> c_int;
    /// The founding scenario's foreign half: phase 1, the callbacks, phase 5.
    fn foreign_founding(word: *const AtomicU32, callback: unsafe extern "C" fn(*mut c_void), data: *mut c_void, callbacks: u32);
    /// Stores one value in the word and spins until it is another.
    fn foreign_advance(word: *const AtomicU32, store: u32, wait: u32);
    /// Runs `threads` pthreads that call back `calls` times each; the sum of the results.
    fn foreign_threads(threads: c_int, calls: c_int, callback: Callback) -> i64;
    /// `callback(0)` on a pthread of its own.
    fn foreign_call_back_elsewhere(callback: Callback, x: c_int) -> c_int;
    /// Calls back with 0 arguments.
    fn foreign_arity_0(f: extern "C" fn() -> i64) -> i64;
    /// Calls back with 1 argument; argument i is 1 << i, here and below.
    fn foreign_arity_1(f: extern "C" fn(i64) -> i64) -> i64;
    /// Calls back with 3 arguments.
    fn foreign_arity_3(f: extern "C" fn(i64, i64, i64) -> i64) -> i64;
    /// Calls back with 6 arguments.
    fn foreign_arity_6(f: extern "C" fn(i64, i64, i64, i64, i64, i64) -> i64) -> i64;
    /// Calls back with 7 arguments.
    fn foreign_arity_7(f: extern "C" fn(i64, i64, i64, i64, i64, i64, i64) -> i64) -> i64;
    /// Calls back with 8 arguments.
    fn foreign_arity_8(f: extern "C" fn(i64, i64, i64, i64, i64, i64, i64, i64) -> i64) -> i64;
    /// Calls back with 11 arguments.
    fn foreign_arity_11(f: extern "C" fn(i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64) -> i64) -> i64;
    /// Calls back with 12 arguments.
    fn foreign_arity_12(f: extern "C" fn(i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64) -> i64) -> i64;
    /// Stores one value in the word and yields until it is another or more.
    fn foreign_meet(word: *const AtomicU32, store: u32, wait: u32);
    /// [`foreign_meet`], then sets `errno` and returns -1.
    fn foreign_meet_and_fail(word: *const AtomicU32, store: u32, wait: u32, error: c_int) -> c_int;
    /// Counts until the word is `stop` or more.
    fn foreign_count_until(counter: *const AtomicU64, word: *const AtomicU32, stop: u32);
    /// `callback(1) + callback(2)`, adding one to `cleaned_up` after each.
    fn foreign_call_back_twice(callback: Callback, cleaned_up: *mut c_int) -> c_int;
    /// `callback(x)` with `word` in every callee-saved register and all over C's frame; -1 if the frame was damaged.
    fn foreign_litter(word: usize, callback: Callback, x: c_int) -> c_int;
    /// Holds `disguised ^ key` in C's frame across `callback(0)`; 1 if it was there all the time.
    fn foreign_hold(disguised: usize, key: usize, callback: Callback) -> c_int;
    /// `callback(disguised ^ key)`.
    fn foreign_give(disguised: usize, key: usize, callback: extern "C" fn(usize) -> c_int) -> c_int;
    /// `callback` with `disguised ^ key` in the third word of a struct passed by value.
    fn foreign_give_struct(disguised: usize, key: usize, callback: extern "C" fn(Quad) -> c_int) -> c_int;
    /// Stores both in the entry.
    fn foreign_register(entry: *mut Entry, callback: unsafe extern "C" fn(c_int, *mut c_void) -> c_int, user_data: *mut c_void);
    /// The entry, by value and back.
    fn foreign_copy_entry(entry: Entry) -> Entry;
    /// `entry->callback(x, entry->user_data)`.
    fn foreign_fire(entry: *const Entry, x: c_int) -> c_int;
    /// Closes the resource.
    fn foreign_close(resource: *mut Resource);
    /// How often the resource was open, of before and after `callback(0)`.
    fn foreign_use(resource: *mut Resource, callback: Callback) -> c_int;
    /// `callback(x)`, or `otherwise` if [`foreign_leap`] leaps past it.
    fn foreign_call_back_and_land(callback: Callback, x: c_int, otherwise: c_int) -> c_int;
    /// Leaps to this thread's last [`foreign_call_back_and_land`], past every frame in between.
    fn foreign_leap();
    /// The Adler-32 checksum.
    fn foreign_checksum(bytes: *const c_uchar, length: usize) -> u32;
    /// Stores one value in the word, waits for a bit of `mask` in the word `asked`, and works on for so many nanoseconds.
    fn foreign_work_on(word: *const AtomicU32, store: u32, asked: *const AtomicU32, mask: u32, nanoseconds: i64);
    /// Stores one value in the word and yields until it is another or more, for so many nanoseconds at most; 1 if it came.
    fn foreign_meet_within(word: *const AtomicU32, store: u32, wait: u32, nanoseconds: i64) -> c_int;
    /// Writes one word, wherever.
    fn foreign_overwrite(at: *mut usize, word: usize);
    /// Writes one byte, wherever.
    fn foreign_overwrite_byte(at: *mut c_uchar, byte: c_uchar);
    /// `other` plus the word at an address, if that is not null.
    fn foreign_first_word(words: *const usize, other: usize) -> usize;
    /// `body(0)`; 1 if [`foreign_escape`] left it.
    fn foreign_escapable(body: Callback) -> c_int;
    /// Goes back to the innermost [`foreign_escapable`] of this thread with `longjmp`, past every frame in between.
    fn foreign_escape();
    /// `callback(x)` with a block of memory held, which is counted in `held`; it is given back, and counted in `cleaned_up` if it was intact.
    fn foreign_call_back_holding(callback: Callback, x: c_int, held: *mut c_int, cleaned_up: *mut c_int) -> c_int;
    /// `callback(x)` from a stack that is not the thread's own; -1 where C has no such thing (it has on Linux).
    fn foreign_call_back_on_another_stack(callback: Callback, x: c_int) -> c_int;
    /// Goes back from the other stack to [`foreign_call_back_while_suspended`], until that resumes it.
    fn foreign_suspend();
    /// `there(x)` on another stack, which suspends itself; `here(x)` on this one; then the rest of `there`. The sum.
    fn foreign_call_back_while_suspended(there: Callback, here: Callback, x: c_int) -> c_int;
    /// Reads the machine's state.
    fn foreign_machine(out: *mut Machine);
    /// Flushes denormals to zero, rounds upwards, lowers the x87 precision.
    fn foreign_change_float();
    /// Blocks SIGUSR1.
    fn foreign_block_signal();
    /// `x / 2`.
    fn foreign_halve(x: f64) -> f64;
    /// Both changes, then `callback(x)`; -1 if the state is not what it was made.
    fn foreign_change_machine_and_call_back(callback: Callback, x: c_int) -> c_int;
    /// Runs `f(data)` on a thread with exactly `size` bytes of stack and a page below it that faults; -1 if there is no such thread.
    fn foreign_thread_with_stack(size: usize, f: extern "C" fn(*mut c_void), data: *mut c_void) -> c_int;
    /// Jumps to a point of this thread, which one of the next functions has set.
    fn foreign_jump(point: c_int) -> !;
    /// Sets a point and calls back: the result, or -1 if a jump has landed.
    fn foreign_land(point: c_int, call: DataCallback, x: c_int, data: *mut c_void) -> c_int;
    /// `first(x, data)`; if a jump lands, `next(x, data)`.
    fn foreign_land_and_call(point: c_int, first: DataCallback, next: DataCallback, x: c_int, data: *mut c_void) -> c_int;
    /// The same, with `next` called from below so many kilobytes of C frames.
    fn foreign_land_and_call_below(point: c_int, first: DataCallback, next: DataCallback, x: c_int, data: *mut c_void, kilobytes: c_int) -> c_int;
    /// `call(0, data)` to `call(count - 1, data)`; how many jumps have landed.
    fn foreign_land_many(point: c_int, call: DataCallback, count: c_int, data: *mut c_void) -> c_int;
    /// A callback that jumps, then one of twelve arguments; argument i is 1 << i, here and below.
    fn foreign_land_and_call_wide(point: c_int, first: DataCallback, next: WideCallback, data: *mut c_void) -> i64;
    /// The other way round.
    fn foreign_land_wide_and_call(point: c_int, first: WideCallback, next: DataCallback, data: *mut c_void) -> i64;
    /// A callback that jumps, then one of a struct of 256 bytes.
    fn foreign_land_and_call_large(point: c_int, first: DataCallback, next: LargeCallback, data: *mut c_void) -> i64;
    /// The other way round.
    fn foreign_land_large_and_call(point: c_int, first: LargeCallback, next: DataCallback, data: *mut c_void) -> i64;
    /// [`foreign_land_and_call`] with point 0 on a pthread of its own, or [`foreign_land`] if there is no other callback.
    fn foreign_land_elsewhere(first: DataCallback, next: Option<DataCallback>, x: c_int, data: *mut c_void) -> c_int;
    /// Enters a number in the thread's log.
    fn foreign_log(entry: c_int);
    /// Takes the thread's log.
    fn foreign_take_log(to: *mut c_int, room: usize) -> usize;
    /// `call(x, data)`, and then throws and catches, and calls back in the handler.
    fn foreign_throw_and_catch(call: DataCallback, x: c_int, data: *mut c_void) -> c_int;
    /// Throws the result of `call(x, data)` and catches it.
    fn foreign_catch_after_callback(call: DataCallback, x: c_int, data: *mut c_void) -> c_int;
    /// Gives `count` items to libuv's pool: `on_pool(i)` runs on a thread of the pool, `on_loop(i)` on this one. The sum of the results.
    fn foreign_uv(count: c_int, on_pool: Callback, on_loop: Callback) -> i64;
    /// Ends the threads of libuv's pool, which must not be used after.
    fn foreign_uv_end();
    /// `visits` threads call back `calls` times each, one after the other, flooded with a signal whose handler calls back too if `may_call()` is not 0. How many did; `not`: how many did not.
    fn foreign_flood(flooders: c_int, visits: c_int, calls: c_int, callback: Callback, may_call: extern "C" fn() -> c_int, not: *mut c_long) -> c_long;
    /// Blocks until `fd` can be read: the result of `poll`.
    fn foreign_poll(fd: c_int, timeout: c_int) -> c_int;
    /// `callback(7)` in a destructor of a pthread's specific data, after `calls_before` calls from the thread itself.
    fn foreign_call_back_in_destructor(callback: Callback, calls_before: c_int) -> c_int;
    /// Has the process print `callback(7)` at its exit.
    fn foreign_call_back_at_exit(callback: Callback);
    /// `callback(x)` on a stack of `bytes` bytes that C makes with `makecontext`; its lowest address and its end go to `bounds`, two words.
    fn foreign_call_back_on_context(callback: Callback, x: c_int, bytes: usize, bounds: *mut usize) -> c_int;
}

/// C that calls back on stacks of its own, and jumps: `tests/foreign/c/nest.c`.
#[derive(Clone, Copy, Debug)]
pub struct Nest {
    /// Whether it was compiled without unwind tables.
    pub bare: bool,
    /// `callback(x, data)`, with a stack in C's frame for `on_stack`; for signal handlers if the first argument is not 0.
    pub with_stack_in_frame: unsafe extern "C" fn(c_int, DataCallback, c_int, *mut c_void) -> c_int,
    /// The same with a stack that the system maps.
    pub with_stack_on_heap: unsafe extern "C" fn(c_int, DataCallback, c_int, *mut c_void) -> c_int,
    /// `callback(x, data)` on that stack: in a coroutine, or in a signal handler.
    pub on_stack: unsafe extern "C" fn(DataCallback, c_int, *mut c_void) -> c_int,
    /// The first callback with a point to jump to, and the second, if there is one, after the jump: its result, or -1; -2 if there was no jump.
    pub land_twice:
        unsafe extern "C" fn(c_int, DataCallback, Option<DataCallback>, c_int, *mut c_void) -> c_int,
    /// Jumps to the point.
    pub jump_to: unsafe extern "C" fn(c_int) -> !,
}

macro_rules! nest {
    ($NAME:ident, $bare:literal, $in_frame:ident, $on_heap:ident, $on_stack:ident, $land_twice:ident, $jump_to:ident) => {
        foreign! {
            /// See [`Nest`].
            fn $in_frame(signals: c_int, call: DataCallback, x: c_int, data: *mut c_void) -> c_int;
            /// See [`Nest`].
            fn $on_heap(signals: c_int, call: DataCallback, x: c_int, data: *mut c_void) -> c_int;
            /// See [`Nest`].
            fn $on_stack(call: DataCallback, x: c_int, data: *mut c_void) -> c_int;
            /// See [`Nest`].
            fn $land_twice(point: c_int, first: DataCallback, next: Option<DataCallback>, x: c_int, data: *mut c_void) -> c_int;
            /// See [`Nest`].
            fn $jump_to(point: c_int) -> !;
        }
        const $NAME: Nest = Nest {
            bare: $bare,
            with_stack_in_frame: $in_frame,
            with_stack_on_heap: $on_heap,
            on_stack: $on_stack,
            land_twice: $land_twice,
            jump_to: $jump_to,
        };
    };
}

nest!(
    WITH_TABLES,
    false,
    foreign_with_stack_in_frame,
    foreign_with_stack_on_heap,
    foreign_on_stack,
    foreign_land_twice,
    foreign_jump_to
);
nest!(
    BARE,
    true,
    foreign_bare_with_stack_in_frame,
    foreign_bare_with_stack_on_heap,
    foreign_bare_on_stack,
    foreign_bare_land_twice,
    foreign_bare_jump_to
);

/// As C is compiled on this system, and without unwind tables.
pub const NESTS: [Nest; 2] = [WITH_TABLES, BARE];

macro_rules! foreign_unwinding {
    ($($(#[$meta:meta])* fn $name:ident($($argument:ident: $ty:ty),*) $(-> $result:ty)?;)*) => {
        unsafe extern "C-unwind" {
            $($(#[$meta])* pub fn $name($($argument: $ty),*) $(-> $result)?;)*
        }
    };
}

// C++ that an exception may leave, and that takes callbacks which an exception may leave.
foreign_unwinding! {
    /// Throws.
    fn foreign_throw(value: c_int) -> !;
    /// `call(x, data)`, with an object that logs its end.
    fn foreign_pass(call: UnwindDataCallback, x: c_int, data: *mut c_void) -> c_int;
    /// The same with a handler: `-value` if something was caught.
    fn foreign_catch(call: UnwindDataCallback, x: c_int, data: *mut c_void) -> c_int;
    /// `call(data, x)`, or `-value` if something was caught.
    fn foreign_catch_first(call: unsafe extern "C-unwind" fn(*mut c_void, c_int) -> c_int, x: c_int, data: *mut c_void) -> c_int;
    /// `call(x, data)`; if something is caught, `next(value, data)`.
    fn foreign_catch_and_call(call: UnwindDataCallback, next: UnwindDataCallback, x: c_int, data: *mut c_void) -> c_int;
    /// Catches and throws again.
    fn foreign_catch_and_rethrow(call: UnwindDataCallback, x: c_int, data: *mut c_void) -> c_int;
}
