//! The exit of a thread that has attachments, and how to tell that the process is exiting.
//!
//! # Which moment
//!
//! A thread that ends runs the destructors of its thread-locals, in any order, and then those of
//! its POSIX thread-specific data, in up to four rounds. Code that uses an attachment can run in
//! any of the former. So what the thread has left attached ends in the latter: by then nothing
//! managed is on the stack, and every thread-local is gone.
//!
//! Two more properties made this the moment, and a thread-local's destructor would have neither:
//!
//! - Arming it takes no lock of the dynamic loader. The C library registers a thread-local's
//!   destructor under that lock, so a library whose destructor joins a thread that calls in for the
//!   first time would wait for ever.
//! - `exit` runs the destructors of the calling thread's thread-locals, and returns from nothing:
//!   frames that use the attachment are live below it. It does not run those of thread-specific data.
//!
//! Where there is no thread-specific data (loom, Miri, systems other than Unix) the destructor of a
//! thread-local does what can be done there: it ends what is in no call.

use crate::faults::Faults;
use crate::record::{Header, Ownership};
use crate::state::State;
use crate::sync::{Cell, thread_local_const};
use crate::thread::{first_on_thread, unlink};
use crate::vm::FrameKind;

thread_local_const! {
    /// The thread's attachments have been ended. What attached now would stay attached for ever.
    static OVER: Cell<bool> = Cell::new(false);
}

/// The thread cannot attach any more: nothing would detach it.
#[derive(Debug)]
pub(crate) struct ThreadExiting;

/// Sees to it that this thread's attachments end with the thread.
///
/// # Errors
///
/// The thread's attachments have been ended already.
pub(crate) fn arm() -> Result<(), ThreadExiting> {
    if is_over() { Err(ThreadExiting) } else { moment::arm() }
}

/// Says whether this thread's attachments have been ended by its exit.
pub(crate) fn is_over() -> bool {
    OVER.with(Cell::get)
}

/// Makes ready what [`arm`] needs, once for the process, where locks may be taken.
pub(crate) fn prepare() {
    moment::prepare();
}

/// Ends what the thread itself owns: the attachments of a foreign thread.
///
/// `jumped`: nothing managed can be on the stack, so an activation that is in progress was jumped
/// over. Otherwise such a mutator stays as it is.
fn end_own(jumped: bool) {
    OVER.with(|over| over.set(true));
    // The world leaves the record before code of the VM runs, so that each is looked at once.
    let next = |header: &Header| {
        let own = header.ownership.get() == Ownership::Thread
            && (jumped || header.word.is_published(&raw const header.base));
        let world = if own { header.keep.take() } else { None };
        world.map(|world| (core::ptr::from_ref(header), world))
    };
    while let Some((header, world)) = first_on_thread(next) {
        // SAFETY: `world` keeps the record alive; it is this thread's.
        if world.leave(unsafe { &*header }).is_err() {
            // The thread holds a pause, which nobody can end: the world is lost. Its record is in use.
            let _leaked = core::mem::ManuallyDrop::new(world);
        }
    }
}

/// Ends what is left on the thread's list: attachments that were leaked.
///
/// Nothing managed can run on the thread any more, so they count as stopped, with no frames. Their
/// roots stay (I9).
#[cfg_attr(any(not(unix), loom, miri), expect(dead_code, reason = "there is no such moment"))]
fn orphan_leaked() {
    let next = |header: &Header| {
        let world = if header.ownership.get() == Ownership::Attachment { header.keep.take() } else { None };
        world.map(|world| (core::ptr::from_ref(header), world))
    };
    while let Some((header, world)) = first_on_thread(next) {
        // SAFETY: `world` keeps the record alive; it is this thread's.
        let header = unsafe { &*header };
        if header.state() == State::Managed {
            world.tell_leaving(header);
        }
        {
            let _registry = header.coordinator().lock();
            header.ownership.set(Ownership::Orphan);
        }
        if header.state() == State::Managed {
            header.base.kind.set(FrameKind::Leaving);
            header.word.publish(&raw const header.base, Faults::NONE);
        }
        unlink(header);
    }
}

#[cfg(all(unix, not(loom), not(miri)))]
mod moment {
    use super::{ThreadExiting, end_own, orphan_leaked};
    use std::sync::OnceLock;

    static KEY: OnceLock<Option<libc::pthread_key_t>> = OnceLock::new();

    /// # Errors
    ///
    /// The system keeps no more thread-specific data.
    pub(super) fn arm() -> Result<(), ThreadExiting> {
        // Made with the first world, so this is one load. Without a key, or without memory for a
        // value of it, nothing would detach the thread.
        let key = KEY.get_or_init(make_key).ok_or(ThreadExiting)?;
        // SAFETY: a key of this process; any value that is not null has its destructor called.
        let armed = unsafe { libc::pthread_setspecific(key, core::ptr::without_provenance(1)) };
        if armed == 0 { Ok(()) } else { Err(ThreadExiting) }
    }

    pub(super) fn prepare() {
        if KEY.get().is_none() {
            KEY.get_or_init(make_key);
            keep_loaded();
        }
    }

    fn make_key() -> Option<libc::pthread_key_t> {
        let mut key = 0;
        // SAFETY: `key` is valid for writes, and `run` may be called at any thread's exit.
        (unsafe { libc::pthread_key_create(&raw mut key, Some(run)) } == 0).then_some(key)
    }

    extern "C" fn run(_: *mut core::ffi::c_void) {
        end_own(true);
        orphan_leaked();
    }

    /// Keeps the shared object that this code is in from being unloaded: threads that have attached
    /// call [`run`] at their exit. (A destructor of a thread-local would do so by itself.)
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    fn keep_loaded() {
        let mut found = core::mem::MaybeUninit::<libc::Dl_info>::uninit();
        let here = run as extern "C" fn(*mut core::ffi::c_void) as *const core::ffi::c_void;
        // SAFETY: `found` is valid for writes; it is filled if the result is not 0, and then names an
        // object that is loaded. A program itself may not be found again by that name, and stays.
        unsafe {
            if libc::dladdr(here, found.as_mut_ptr()) != 0 {
                let name = found.assume_init().dli_fname;
                libc::dlopen(name, libc::RTLD_LAZY | libc::RTLD_NOLOAD | libc::RTLD_NODELETE);
            }
        }
    }

    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    fn keep_loaded() {}
}

#[cfg(any(not(unix), loom, miri))]
mod moment {
    use super::{ThreadExiting, end_own};
    use crate::sync::thread_local_lazy;

    thread_local_lazy! { static EXIT: AtExit = AtExit; }

    struct AtExit;

    impl Drop for AtExit {
        fn drop(&mut self) {
            // loom destroys every thread-local before it runs a destructor, so nothing can be looked at
            // here. A model detaches its threads itself.
            if !cfg!(loom) {
                end_own(false);
            }
        }
    }

    /// # Errors
    ///
    /// The thread's destructors are running.
    pub(super) fn arm() -> Result<(), ThreadExiting> {
        EXIT.try_with(|_| ()).map_err(|_| ThreadExiting)
    }

    pub(super) fn prepare() {}
}
