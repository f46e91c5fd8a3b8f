//! Which world takes in threads that no world knows, by VM type: for upcall functions that carry no data.

use crate::control::SignalsBlocked;
use crate::pause::Shared;
use crate::process;
use crate::vm::StackScanner;
use core::any::{Any, TypeId};
use core::time::Duration;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};

type Home = (TypeId, Weak<dyn Any + Send + Sync>);

/// Few entries, looked at on a foreign thread's first upcall only.
static HOMES: Mutex<Vec<Home>> = Mutex::new(Vec::new());

fn with<T>(f: impl FnOnce(&mut Vec<Home>) -> T) -> T {
    // On a thread that is foreign or unknown: the handler of a signal that makes an upcall must not find the list locked by this thread.
    let _blocked = SignalsBlocked::new();
    f(&mut lock())
}

/// Each critical section leaves the list whole where it can unwind.
fn lock() -> MutexGuard<'static, Vec<Home>> {
    if process::number() != 0 {
        // A copy that nobody prepared: the lock may be one that nobody gives back. Who has it in this
        // process has it for a moment.
        for _ in 0..1000 {
            match HOMES.try_lock() {
                Ok(homes) => return homes,
                Err(TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        process::abort_copy(format_args!("the list of worlds that adopt foreign threads was in use"));
    }
    HOMES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Who adopts foreign threads for one type of VM.
pub(crate) enum Adopter<V: StackScanner> {
    /// No world ever did.
    Nobody,
    /// A world that has gone since.
    Gone,
    /// This one.
    World(Arc<Shared<V>>),
}

/// The world that adopts foreign threads for `V`.
pub(crate) fn home<V: StackScanner>() -> Adopter<V> {
    let found = with(|homes| Some(homes.iter().find(|(vm, _)| *vm == TypeId::of::<V>())?.1.upgrade()));
    match found {
        None => Adopter::Nobody,
        Some(world) => match world.and_then(|world| world.downcast().ok()) {
            None => Adopter::Gone,
            Some(shared) => Adopter::World(shared),
        },
    }
}

/// Makes `shared` the one, in place of another.
pub(crate) fn set_home<V: StackScanner>(shared: &Arc<Shared<V>>) {
    let any: Arc<dyn Any + Send + Sync> = Arc::<Shared<V>>::clone(shared);
    let weak = Arc::downgrade(&any);
    with(|homes| {
        // The entry of a world that has gone stays: it tells a late caller from one that is wrong here.
        homes.retain(|(vm, _)| *vm != TypeId::of::<V>());
        homes.push((TypeId::of::<V>(), weak));
    });
}

/// No other thread changes the list until the result is dropped, and no signal is delivered to this one.
#[cfg(all(unix, not(loom), not(miri)))]
pub(crate) fn homes_held() -> impl Sized {
    // A tuple's parts are dropped in order.
    let blocked = SignalsBlocked::new();
    (lock(), blocked)
}
