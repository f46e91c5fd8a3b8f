//! Foreign functions and callbacks whose signatures are known at run time only: what a program declares that this VM runs.
//!
//! | | what | made by |
//! |---|---|---|
//! | [`Types`], [`Type`] | C types, and the names a program has given to some | text in C, or by hand |
//! | [`Signature`] | the type of a function, prepared and shared | [`Signature::parse`], [`Types::signature`] |
//! | [`Library`], [`Function`] | a function in a library | [`Library::function`], [`Function::new`] |
//! | [`Call`] | one foreign call of it, with a plan for each argument | [`ForeignCall::dynamic`](crate::ForeignCall::dynamic) |
//! | [`Closure`] | a managed callable as a C function pointer | [`Closure::new`] |
//! | [`Quarantine`] | what becomes of a closure's code when it is dropped | [`Quarantine::of`] |
//!
//! A call is a [`ForeignCall`](crate::ForeignCall) and a closure is an upcall: what those guarantee, these do. What is added is checked before anything is called: a wrong number of arguments, a value of another type, an unknown
//! symbol or calling convention is a typed error that says what was expected and what came. Whether a C function has the signature it was declared with nobody can check, so making the call is `unsafe`.
//!
//! # Examples
//!
//! `qsort` with a managed comparator that collects every time:
//!
//! ```
//! use reentry::World;
//! use reentry::dynamic::{Closure, Library, Signature};
//! use reentry::testkit::TestVm;
//!
//! let world = World::new(TestVm::new());
//! let mut mutator = world.attach()?;
//! let qsort = Library::this_process()
//!     .function("qsort", &Signature::parse("void (void*, size_t, size_t, int (*)(const void*, const void*))")?)?;
//! let compare = Closure::new(&world, &Signature::parse("int (const void*, const void*)")?, |mutator, call| {
//!     TestVm::collect_in(mutator).expect("no root is stale");
//!     let [a, b] = [0, 1].map(|index| {
//!         let element = call.argument(index).as_pointer().expect("a pointer").cast::<i32>();
//!         // SAFETY: qsort passes the addresses of two elements.
//!         unsafe { *element }
//!     });
//!     call.returns(a.cmp(&b) as i32).expect("an `int`");
//!     Ok(())
//! })?;
//!
//! let mut call = mutator.foreign_call().dynamic(&qsort);
//! let numbers = call.copy_slice(&[3, 1, 2])?;
//! call.value(3_usize)?;
//! call.value(4_usize)?;
//! call.closure(&compare)?;
//! // SAFETY: the signature is that of `qsort`; there are three elements of four bytes.
//! unsafe { call.run() }?;
//! assert_eq!(call.read_slice(numbers), [1, 2, 3]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod abi;
mod call;
mod closure;
mod library;
mod parse;
mod quarantine;
mod signature;
mod types;
mod value;

pub use abi::{Abi, UnknownAbi};
pub use call::{Call, CallError, Plan, TryCallError};
pub use closure::{Closure, ClosureBuilder, ClosureError, Invocation, UnknownClosure};
pub use library::{Function, Library, LibraryError, SymbolError};
pub use parse::{SignatureError, Types};
pub use quarantine::{LateCall, Quarantine};
pub use signature::Signature;
pub use types::{Field, Pointee, Scalar, Struct, Target, Type, TypeError};
pub use value::{Value, ValueError};

/// No other thread is in the midst of changing what all closures and signatures of the process share,
/// until the result is dropped.
#[cfg(all(unix, not(loom), not(miri)))]
pub(crate) fn shared_held() -> impl Sized {
    // A tuple's parts are dropped in order: the lock that was taken first is given back last.
    let closures = closure::closures_held();
    let quarantine = quarantine::quarantine_held();
    (signature::cache_held(), quarantine, closures)
}
