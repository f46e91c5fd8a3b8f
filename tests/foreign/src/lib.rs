//! The C side of reentry's tests, examples and benches: real foreign code, compiled by the `cc` crate.
//!
//! Every function is what its C source says; whoever calls one promises valid pointers and functions that may be called.

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

/// A struct too large for registers: what [`foreign_give_struct`] gives its callback.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Quad {
    /// Four words.
    pub words: [usize; 4],
}

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
    /// Does nothing.
    fn foreign_nothing();
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
}
