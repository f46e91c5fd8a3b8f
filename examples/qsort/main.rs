//! 100,000 managed strings, sorted by libc's `qsort`, and moved under its feet a few hundred times.
//!
//! ```text
//! cargo run --release -p qsort
//! cargo run --release -p qsort -- --count 20000 --collect-every 500
//! ```
//!
//! `qsort` knows nothing of collectors. It calls a comparator for each pair it wants to know about; here that
//! is managed code, which allocates two sort keys for each comparison and collects every so often. A
//! collection moves every string.
//!
//! # What to let C sort
//!
//! | the array holds | while a collection comes | verdict |
//! |---|---|---|
//! | references | `qsort` has copies in a buffer of its own and in registers, where no collector looks | stale |
//! | references to pinned strings | nothing moves | right; 100,000 objects stand still for the length of the sort |
//! | **addresses of the call's root slots** | the strings move, the slots follow them, the slots themselves stay | right |
//!
//! The last one is what this example does. A slot of [`ForeignCall::root`](reentry::ForeignCall::root) does
//! not move before the call ends, so its address means the same wherever C copies it. What C permutes is a
//! list of plain words, and the comparator finds each string through its slot.
#![expect(clippy::missing_panics_doc, reason = "a panic is how an example says that something does not hold")]
#![expect(clippy::missing_errors_doc, reason = "the errors are messages for the command line")]

use core::ffi::{c_int, c_void};
use core::mem::size_of;
use core::sync::atomic::{AtomicU64, Ordering};
use indicatif::{ProgressBar, ProgressStyle};
use reentry::testkit::{Heap, Ref, TestVm};
use reentry::{Mutator, World, upcall_fn};
use std::io::Write as _;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::Instant;

const HELP: &str = "\
Sorts managed strings with libc's qsort and a managed comparator that allocates and collects.

Usage: qsort [--count N] [--collect-every N]

  --count N           how many strings (default 100000)
  --collect-every N   a collection at every N-th comparison (default 5000)
  --help              this text
";

/// An element of the array C sorts: the address of the slot that names a string.
type Element = *const Ref;

/// What the comparator shares with `main`. `qsort` passes no user data on, so it is a static.
struct Sort {
    collect_every: u64,
    comparisons: AtomicU64,
    bar: ProgressBar,
}

static SORT: OnceLock<Sort> = OnceLock::new();

/// The comparator: C calls it, on this thread, and it runs managed.
///
/// Should it panic, the panic waits until `qsort` has returned, and goes on in `main`.
fn compare(mutator: &mut Mutator<TestVm>, a: *const c_void, b: *const c_void) -> c_int {
    let sort = SORT.get().expect("`main` sets it before it sorts");
    let number = sort.comparisons.fetch_add(1, Ordering::Relaxed) + 1;
    if number.is_multiple_of(sort.collect_every) {
        // The string `qsort` compared a moment ago, and the two it wants compared now: all are somewhere else
        // after this.
        TestVm::collect_in(mutator).unwrap_or_else(|undead| panic!("{undead}"));
        sort.bar.set_position(number);
    }
    let heap = mutator.vm().heap();
    let [a, b] = [a, b].map(|element| {
        // SAFETY: `qsort` passes the addresses of two elements, in the array it was given or in a copy of its
        // own.
        let slot = unsafe { element.cast::<Element>().read() };
        // SAFETY: the slot of a root of the foreign call this upcall runs in; this thread is managed, so
        // nobody is moving the string.
        let string = unsafe { slot.read() };
        // Nothing collects before the comparison, so the key needs no root.
        let key = heap.with_bytes(string, sort_key).expect("a rooted string is never stale");
        heap.alloc(&[], &key)
    });
    heap.compare_bytes(a, b).expect("both keys were allocated just now") as c_int
}

/// What a string is sorted by: its text in lower case, then as it is, so that different strings have
/// different keys.
fn sort_key(text: &[u8]) -> Vec<u8> {
    let mut key = text.to_ascii_lowercase();
    key.push(0);
    key.extend_from_slice(text);
    key
}

/// Makes words of 4 to 19 letters, the same ones in each run.
fn words(count: usize) -> Vec<String> {
    const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut random = move |below: usize| {
        // Marsaglia's xorshift64.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as usize % below
    };
    let mut word = || {
        let length = 4 + random(16);
        (0..length).map(|_| char::from(LETTERS[random(LETTERS.len())])).collect()
    };
    (0..count).map(|_| word()).collect()
}

/// Sorts the words on the managed heap and returns them in the order C left them in.
fn sort_managed(mutator: &mut Mutator<TestVm>, heap: &Heap, words: &[String]) -> Vec<String> {
    // The call is their only root. Nothing collects between an allocation and its `root`: this is the only
    // mutator, and it does not poll.
    let mut call = mutator.foreign_call();
    let roots: Vec<_> = words.iter().map(|word| call.root(heap.alloc(&[], word.as_bytes()))).collect();
    let slots: Vec<Element> = roots.iter().map(|root| root.slot().cast_const()).collect();
    // C works on memory of the call, which no collection moves.
    let array = call.copy_slice(&slots);

    let comparator: extern "C" fn(*const c_void, *const c_void) -> c_int = upcall_fn(compare);
    call.run(|| {
        // SAFETY: the array holds that many elements of that size and is C's until the call ends; the
        // comparator is an upcall function, called on this thread only, and orders elements by a total order.
        unsafe {
            libc::qsort(array.as_ptr().cast::<c_void>(), slots.len(), size_of::<Element>(), Some(comparator));
        }
    });

    // SAFETY: the call has not ended, so its memory holds the elements, and C is done with them.
    let sorted: &[Element] = unsafe { &*array.as_ptr() };
    let text = |&slot: &Element| {
        // SAFETY: a slot of a root of this call, read on a managed thread.
        let string = unsafe { slot.read() };
        String::from_utf8(heap.bytes(string).expect("a rooted string is never stale"))
            .expect("it was made of text")
    };
    sorted.iter().map(text).collect()
}

fn main() -> ExitCode {
    let (count, collect_every) = match choose(std::env::args().skip(1)) {
        Ok(Some(choice)) => choice,
        Ok(None) => {
            show(HELP);
            return ExitCode::SUCCESS;
        }
        Err(message) => {
            eprintln!("qsort: {message}");
            return ExitCode::from(2);
        }
    };
    let words = words(count);

    // A merge sort needs about this many comparisons. The bar hides itself where standard error is no
    // terminal.
    let expected = (count as f64 * (count as f64).log2().max(1.0)) as u64;
    let style = ProgressStyle::with_template("{bar:50} {pos}/{len} comparisons, {eta} left");
    let bar = ProgressBar::new(expected).with_style(style.expect("the template is a constant"));
    let sort = SORT.get_or_init(|| Sort { collect_every, comparisons: AtomicU64::new(0), bar });

    let world = World::new(TestVm::new());
    let mut mutator = world.attach().expect("this thread is new to the world");
    let start = Instant::now();
    let sorted = sort_managed(&mut mutator, world.vm().heap(), &words);
    let took = start.elapsed();
    sort.bar.finish_and_clear();

    let comparisons = sort.comparisons.load(Ordering::Relaxed);
    let (collections, moved) = world.vm().totals();
    assert_eq!(collections, comparisons / collect_every);
    assert_eq!(
        moved,
        collections * count as u64,
        "each collection moved each string, and no key outlived its comparison"
    );
    let mut by_rust = words;
    by_rust.sort_by_cached_key(|word| sort_key(word.as_bytes()));
    assert!(sorted == by_rust, "qsort and Rust's sort agree");

    let per_second = comparisons as f64 / took.as_secs_f64();
    show(&format!(
        "sorted {count} managed strings with libc's qsort; Rust's sort agrees\n\
         \x20 comparisons   {comparisons:>12}   upcalls, each allocating two sort keys\n\
         \x20 collections   {collections:>12}   one at every {collect_every} comparisons\n\
         \x20 objects moved {moved:>12}   each string {collections} times\n\
         \x20 upcalls/s     {per_second:>12.0}   keys and collections included\n\
         \x20 time          {:>12.2} s\n",
        took.as_secs_f64()
    ));
    ExitCode::SUCCESS
}

/// Writes to standard output. A reader that has left is no reason to stop.
fn show(text: &str) {
    drop(std::io::stdout().lock().write_all(text.as_bytes()));
}

/// Reads the command line: the number of strings and of comparisons between collections, or `None` if help
/// was asked for.
fn choose(mut arguments: impl Iterator<Item = String>) -> Result<Option<(usize, u64)>, String> {
    let (mut count, mut collect_every) = (100_000, 5000);
    while let Some(argument) = arguments.next() {
        let mut number = || {
            let value = arguments.next().unwrap_or_default();
            let number = value.parse::<u32>().ok().filter(|&number| number > 0);
            number.ok_or_else(|| format!("{argument} takes a number from 1 to {}, not `{value}`", u32::MAX))
        };
        match argument.as_str() {
            "--help" | "-h" => return Ok(None),
            "--count" => count = number()? as usize,
            "--collect-every" => collect_every = u64::from(number()?),
            _ => return Err(format!("unknown argument `{argument}`; --help lists those there are")),
        }
    }
    Ok(Some((count, collect_every)))
}
