//! What happens round `fork(2)`, whoever calls it.
//!
//! POSIX runs handlers round a fork, on the thread that forks: those that *prepare* in the reverse
//! order of their registration, those of parent and child in its order. Handlers of libraries may call
//! in, make closures, or wait for threads that do. So no lock may be held over them and no world be
//! stopped: [`Mutator::fork`](crate::Mutator::fork) does both in handlers of this crate's own, which are
//! registered before `main` runs, so that they come last before the fork and first after it.
//!
//! ```text
//!   Mutator::fork
//!     fork(2)
//!       handlers that prepare, of libraries    may call in
//!       ours                                   stops the world, takes the locks
//!                  parent | child
//!       ours                                   gives the locks back, lets the world go on
//!       handlers of libraries                  may call in
//! ```
//!
//! The same handlers notice a fork that nobody prepared (`process.rs`).

use crate::os_thread::ThreadTag;
use crate::process::is_unprepared_copy;
use crate::sync::Cell;
use crate::thread::each_on_thread;
use core::convert::Infallible;
use core::ptr;
use core::sync::atomic::{AtomicBool, Ordering};

/// A fork that is prepared.
pub(crate) trait Prepared {
    /// Last before the fork.
    fn prepare(&mut self);
    /// First after it, in the parent, or in the child.
    fn after(&mut self, in_child: bool);
    /// In the child, where the process is another one for other worlds: it is the same for this.
    fn keep_world(&self);
}

std::thread_local! {
    /// The prepared fork that this thread is making.
    static PREPARED: Cell<Option<*mut dyn Prepared>> = const { Cell::new(None) };
    /// This thread was the only one of the process when it began to fork.
    static ALONE: Cell<bool> = const { Cell::new(false) };
}

static REGISTERED: AtomicBool = AtomicBool::new(false);

/// Registers the handlers, once.
extern "C" fn register() {
    if !REGISTERED.swap(true, Ordering::Relaxed) {
        // SAFETY: three functions that may be called round any fork. Without memory for them there are
        // none, and then `fork` below calls them itself.
        let registered = unsafe { libc::pthread_atfork(Some(prepare), Some(parent), Some(child)) } == 0;
        REGISTERED.store(registered, Ordering::Relaxed);
    }
}

/// Has [`register`] called before `main`, so that handlers registered by the program and by what it
/// loads come before ours on the way in.
#[cfg(target_os = "linux")]
#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = register;

/// Forks, with the handlers of this crate doing what `prepared` says. Returns what `fork(2)` does.
///
/// # Safety
///
/// As for `fork(2)`; this crate is taken care of.
pub(crate) unsafe fn fork(prepared: &mut dyn Prepared) -> libc::pid_t {
    register();
    let ours = REGISTERED.load(Ordering::Relaxed);
    // SAFETY: only the lifetime is forgotten, and the pointer is taken back below.
    let prepared = unsafe { core::mem::transmute::<*mut (dyn Prepared + '_), *mut dyn Prepared>(prepared) };
    PREPARED.set(Some(prepared));
    let _back = scopeguard::guard((), |()| PREPARED.set(None));
    if !ours {
        prepare();
    }
    // SAFETY: promised by the caller.
    let forked = unsafe { libc::fork() };
    if !ours {
        if forked == 0 { child() } else { parent() }
    }
    forked
}

extern "C" fn prepare() {
    ALONE.set(is_alone());
    if let Some(prepared) = PREPARED.get() {
        // SAFETY: lives until `fork` has returned, and nobody else uses it meanwhile.
        unsafe { (*prepared).prepare() };
    }
}

extern "C" fn parent() {
    if let Some(prepared) = PREPARED.get() {
        // SAFETY: as in `prepare`.
        unsafe { (*prepared).after(false) };
    }
}

extern "C" fn child() {
    rename_thread();
    if let Some(prepared) = PREPARED.get() {
        // SAFETY: as in `prepare`.
        unsafe { (*prepared).after(true) };
    }
    if ALONE.get() {
        return;
    }
    is_unprepared_copy();
    if let Some(prepared) = PREPARED.get() {
        // SAFETY: as in `prepare`.
        unsafe { (*prepared).keep_world() };
    }
    let marked = each_on_thread(|header| {
        if !header.coordinator().is_of_this_process() {
            // No stack is enough: an upcall goes by the cold way, and is refused there. The next poll
            // looks too.
            header.stack_limit.set(usize::MAX);
            header.word.wake();
        }
        Ok::<(), Infallible>(())
    });
    let Ok(()) = marked;
}

/// Has this thread's mutators name the thread by the number it has in this process.
fn rename_thread() {
    ThreadTag::forget_here();
    let renamed = each_on_thread(|header| {
        if header.fiber().is_none() {
            header.thread.set(ThreadTag::here());
        }
        Ok::<(), Infallible>(())
    });
    let Ok(()) = renamed;
}

/// Says whether the calling thread is the only one of the process; `false` where the system does not
/// tell. Allocates nothing: foreign code may fork in the handler of a signal.
fn is_alone() -> bool {
    let mut text = [0_u8; 1024];
    // SAFETY: the path ends with a NUL, and `text` is valid for writes of its length.
    let length = unsafe {
        let file = libc::open(c"/proc/self/stat".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        if file < 0 {
            return false;
        }
        let length = libc::read(file, ptr::from_mut(&mut text).cast(), text.len());
        libc::close(file);
        length
    };
    let text = usize::try_from(length).ok().and_then(|length| text.get(..length)).unwrap_or(&[]);
    // proc_pid_stat(5): the second field is a name in parentheses, which may hold any byte; the number
    // of threads is the twentieth.
    let after_name = text.iter().rposition(|&byte| byte == b')').map_or(text.len(), |at| at + 1);
    text[after_name..].split(|&byte| byte == b' ').nth(18) == Some(b"1")
}
