//! What the operating system calls a thread, and what that thread does at this moment: for reports.
//!
//! A thread that attaches notes its number, which costs a system call once for each thread. Its name, and
//! whether it sleeps, are asked for when a report is made: the thread itself pays nothing for that.

use crate::sync::{Cell, thread_local_const, thread_token};
use core::fmt;

/// A thread, as a report names it: the number that debuggers and `ps -L` show, and its name.
///
/// # Examples
///
/// ```
/// use reentry::ThreadLabel;
///
/// let named = std::thread::Builder::new().name("collector".into()).spawn(ThreadLabel::here)?;
/// let label = named.join().unwrap();
/// assert_ne!(label.id, ThreadLabel::here().id);
/// assert!(label.to_string().contains("thread"));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct ThreadLabel {
    /// The system's number of the thread (Linux); elsewhere a number that this crate gives each thread.
    pub id: u64,
    /// Its name. Linux keeps 15 bytes of a name, and forgets the name when the thread ends.
    pub name: Option<String>,
}

impl ThreadLabel {
    /// The calling thread.
    #[must_use]
    pub fn here() -> Self {
        Self::of(ThreadTag::here())
    }

    /// The thread that noted `tag`.
    pub(crate) fn of(tag: ThreadTag) -> Self {
        Self { id: tag.id, name: name_of(tag.id) }
    }
}

impl fmt::Display for ThreadLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "thread \"{name}\" ({})", self.id),
            None => write!(f, "thread {}", self.id),
        }
    }
}

/// What a thread notes of itself, for others to name it by.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct ThreadTag {
    /// The system's number; 0 where no thread has noted itself.
    pub(crate) id: u64,
    /// The crate's own number of the thread, which is never used again.
    pub(crate) token: usize,
}

thread_local_const! {
    static ID: Cell<u64> = Cell::new(0);
}

impl ThreadTag {
    /// The calling thread. Not inlined, as everything that reads a thread-local and that a fiber's own
    /// frames may call: see [`thread_token`].
    #[inline(never)]
    pub(crate) fn here() -> Self {
        let token = thread_token();
        let id = ID.with(|id| {
            if id.get() == 0 {
                id.set(ask_system().unwrap_or(token as u64));
            }
            id.get()
        });
        Self { id, token }
    }

    /// Says that the calling thread has another number from now on: it is in a forked process.
    #[cfg(all(unix, not(loom)))]
    pub(crate) fn forget_here() {
        ID.with(|id| id.set(0));
    }
}

#[cfg(all(target_os = "linux", not(loom), not(miri)))]
fn ask_system() -> Option<u64> {
    u64::try_from(rustix::thread::gettid().as_raw_nonzero().get()).ok()
}

#[cfg(not(all(target_os = "linux", not(loom), not(miri))))]
fn ask_system() -> Option<u64> {
    None
}

/// The name of a thread of this process, if it lives and has one.
#[cfg(all(target_os = "linux", not(loom), not(miri)))]
fn name_of(id: u64) -> Option<String> {
    if id == u64::from(std::process::id()) {
        // The system's name for it is the program's.
        return Some("main".to_owned());
    }
    let name = std::fs::read_to_string(format!("/proc/self/task/{id}/comm")).ok()?;
    let name = name.trim_end();
    // A thread that nobody has named has the program's name.
    let program = std::fs::read_to_string("/proc/self/comm").unwrap_or_default();
    (!name.is_empty() && name != program.trim_end()).then(|| name.to_owned())
}

#[cfg(not(all(target_os = "linux", not(loom), not(miri))))]
fn name_of(_: u64) -> Option<String> {
    None
}

/// What a thread of this process does at this moment, as far as the system tells.
#[cfg(all(target_os = "linux", not(loom), not(miri)))]
pub(crate) fn activity_of(id: u64) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/self/task/{id}/syscall")).ok()?;
    let call = text.split_whitespace().next()?;
    if call == "running" {
        return Some("runs".to_owned());
    }
    let number: libc::c_long = call.parse().ok().filter(|&number| number >= 0)?;
    Some(match number {
        libc::SYS_futex => "sleeps in the system call futex: a lock, a channel, a join".to_owned(),
        libc::SYS_read | libc::SYS_readv | libc::SYS_recvfrom | libc::SYS_recvmsg => {
            "sleeps in a system call that reads".to_owned()
        }
        libc::SYS_ppoll | libc::SYS_pselect6 | libc::SYS_epoll_pwait => {
            "sleeps in a system call that waits for files or sockets".to_owned()
        }
        #[cfg(target_arch = "x86_64")]
        libc::SYS_poll | libc::SYS_select | libc::SYS_epoll_wait => {
            "sleeps in a system call that waits for files or sockets".to_owned()
        }
        libc::SYS_nanosleep | libc::SYS_clock_nanosleep => "sleeps for a time it has chosen".to_owned(),
        libc::SYS_wait4 | libc::SYS_waitid => "waits for a process".to_owned(),
        number => format!("sleeps in the system call number {number}"),
    })
}

/// What a thread of this process does at this moment, as far as the system tells: here it does not.
#[cfg(not(all(target_os = "linux", not(loom), not(miri))))]
#[cfg_attr(loom, expect(dead_code, reason = "under loom nothing is reported"))]
pub(crate) fn activity_of(_: u64) -> Option<String> {
    None
}
