//! Early release: an argument that C says it is done with, long before its call returns.

use crate::references::{assert_text, collect, fate, known_world, text, world};
use core::ffi::{c_int, c_void};
use reentry::testkit::TestVm;
use reentry::testkit::heap::Fate;
use reentry::{ArgumentError, Mutator, ReleaseError, ReleaseToken, UpcallClosure, World};
use reentry_foreign::foreign_call_back_last;

/// Calls `body` back from C with a pointer to `data`, which travels through C.
fn with_upcall<T: Sync>(
    world: &World<TestVm>,
    data: &T,
    body: impl Fn(&mut Mutator<TestVm>, &T) + Sync,
    run: impl FnOnce(&dyn Fn()),
) {
    let upcall = UpcallClosure::new(world, |mutator: &mut Mutator<TestVm>, _: c_int, data: *mut c_void| {
        // SAFETY: the pointer given below, and what it points to is borrowed until this function returns.
        body(mutator, unsafe { &*data.cast::<T>() });
        1
    });
    /// The upcall with both of its pointers in one.
    struct Both<'b> {
        function: unsafe extern "C" fn(*mut c_void, c_int, *mut c_void) -> c_int,
        closure: *mut c_void,
        data: *const c_void,
        _borrow: core::marker::PhantomData<&'b ()>,
    }
    /// # Safety
    ///
    /// `both` points to a `Both`.
    unsafe extern "C" fn unpack(x: c_int, both: *mut c_void) -> c_int {
        // SAFETY: promised by the caller.
        let both = unsafe { &*both.cast::<Both<'_>>() };
        // SAFETY: the closure lives, and `data` is what it expects.
        unsafe { (both.function)(both.closure, x, both.data.cast_mut()) }
    }
    let both = Both {
        function: upcall.data_first(),
        closure: upcall.data(),
        data: core::ptr::from_ref(data).cast(),
        _borrow: core::marker::PhantomData,
    };
    run(&|| {
        let both = core::ptr::from_ref(&both).cast_mut().cast();
        // SAFETY: C passes on what it is given.
        assert_eq!(unsafe { foreign_call_back_last(unpack, 0, both) }, 1);
    });
}

/// Before the release the object lives, at every collection; after it, it dies in the same call. The call's other arguments stay.
#[test]
fn an_argument_released_by_an_upcall_is_collectable_in_the_same_call_and_not_before() {
    let world = known_world();
    let mut mutator = world.attach().unwrap();
    let mut call = mutator.foreign_call();
    let kept = call.root(text(&world, "kept"));
    let early = call.root_until_released(text(&world, "done with")).unwrap();
    let other = call.root_until_released(text(&world, "kept as well")).unwrap();
    let upcall = |mutator: &mut Mutator<TestVm>, token: &ReleaseToken| {
        assert_eq!(TestVm::collect_in(mutator).unwrap().live, 3, "declared until it is released");
        mutator.release_argument(*token).unwrap();
        let summary = TestVm::collect_in(mutator).unwrap();
        assert_eq!((summary.freed, summary.live), (1, 2));
        // I3: it does not come back.
        assert_eq!(TestVm::collect_in(mutator).unwrap().live, 2);
        assert_eq!(mutator.release_argument(*token), Err(ReleaseError::AlreadyReleased));
    };
    with_upcall(&world, &early.token(), upcall, |fire| call.run(fire));
    assert_eq!(call.get_unless_released(early), None);
    assert_text(&world, call.get(kept), "kept");
    assert_text(&world, call.get_unless_released(other).unwrap(), "kept as well");
    drop(call);
    assert_eq!(TestVm::collect_in(&mut mutator).unwrap().live, 0);
}

/// Nobody releases it: it is an argument like any other, C's view of it is current, and it ends with the call.
#[test]
fn an_argument_that_nobody_releases_follows_its_object_and_ends_with_the_call() {
    let world = known_world();
    let mut mutator = world.attach().unwrap();
    let mut call = mutator.foreign_call();
    let object = text(&world, "not released");
    let root = call.root_until_released(object).unwrap();
    with_upcall(&world, &(), |mutator, ()| collect(mutator), |fire| call.run(fire));
    let moved = call.get_unless_released(root).unwrap();
    assert_ne!(moved, object);
    // SAFETY: the call's slot, which it holds still, and this thread is managed.
    assert_eq!(unsafe { root.slot().read() }, moved);
    drop(call);
    assert_eq!(TestVm::collect_in(&mut mutator).unwrap().live, 0);
}

/// An upcall of a nested call releases an argument of the outermost.
#[test]
fn an_argument_is_released_from_any_depth_below_its_call() {
    fn descend(mutator: &mut Mutator<TestVm>, token: ReleaseToken, depth: usize) {
        if depth == 0 {
            assert_eq!(TestVm::collect_in(mutator).unwrap().live, 1);
            mutator.release_argument(token).unwrap();
            assert_eq!(TestVm::collect_in(mutator).unwrap().live, 0);
            return;
        }
        let world = mutator.vm().world().unwrap();
        let mut call = mutator.foreign_call();
        with_upcall(
            &world,
            &token,
            |mutator, token| descend(mutator, *token, depth - 1),
            |fire| call.run(fire),
        );
    }
    let world = known_world();
    let mut mutator = world.attach().unwrap();
    let mut call = mutator.foreign_call();
    let root = call.root_until_released(text(&world, "far up")).unwrap();
    let token = root.token();
    with_upcall(&world, &token, |mutator, token| descend(mutator, *token, 3), |fire| call.run(fire));
    assert_eq!(call.get_unless_released(root), None);
}

/// Tokens that are stale, too early, or another mutator's are errors, and change nothing.
#[test]
fn a_token_is_good_for_one_release_below_its_own_call() {
    let world = known_world();
    let stranger = self::world();
    let mut mutator = world.attach().unwrap();
    // A call that is over, with its argument held to the end.
    let mut call = mutator.foreign_call();
    let over = call.root_until_released(text(&world, "over")).unwrap().token();
    call.run(|| ());
    drop(call);
    assert_eq!(mutator.release_argument(over), Err(ReleaseError::CallOver));
    // Another world's, of a mutator with the same number, in a call with the same number.
    let mut theirs = stranger.attach().unwrap();
    assert_eq!(theirs.id(), mutator.id());
    let mut their_call = theirs.foreign_call();
    let foreign = their_call.root_until_released(text(&stranger, "theirs")).unwrap();
    let mut call = mutator.foreign_call();
    let ours = call.root_until_released(text(&world, "ours")).unwrap();
    let tokens = [over, foreign.token(), ours.token()];
    let upcall = |mutator: &mut Mutator<TestVm>, [over, foreign, ours]: &[ReleaseToken; 3]| {
        assert_eq!(mutator.release_argument(*over), Err(ReleaseError::CallOver));
        assert_eq!(mutator.release_argument(*foreign), Err(ReleaseError::OtherMutator));
        // In a call of the upcall's own, from no upcall of it: the outer call is below, its own is not running.
        let mut inner = mutator.foreign_call();
        let own = inner.root_until_released(reentry::testkit::Ref::NULL).unwrap().token();
        inner.run(|| ());
        drop(inner);
        assert_eq!(mutator.release_argument(own), Err(ReleaseError::CallOver));
        assert_eq!(TestVm::collect_in(mutator).unwrap().live, 1);
        assert_eq!(mutator.release_argument(*ours), Ok(()));
    };
    with_upcall(&world, &tokens, upcall, |fire| call.run(fire));
    assert_eq!(call.get_unless_released(foreign), None, "another mutator's is not read");
    their_call.run(|| ());
    assert_text(&stranger, their_call.get_unless_released(foreign).unwrap(), "theirs");
    let messages = [ReleaseError::OtherMutator, ReleaseError::CallOver, ReleaseError::AlreadyReleased];
    for message in messages.map(|error| error.to_string()) {
        assert!(message.contains("release"), "it says what to do: {message}");
    }
}

#[test]
fn what_the_vm_refuses_is_refused_here_as_well() {
    let world = world();
    let mut mutator = world.attach().unwrap();
    let dead = text(&world, "dead");
    collect(&mut mutator);
    assert_eq!(fate(&world, dead), Some(Fate::Freed { collection: 1 }));
    let mut call = mutator.foreign_call();
    let error = ArgumentError::NotOfThisWorld { reference: dead.address() };
    assert_eq!(call.root_until_released(dead).map(drop), Err(error));
}
