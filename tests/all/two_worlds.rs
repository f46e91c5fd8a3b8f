//! Two worlds on one thread, deep: of one type and of two, nested either way, called by function item and by closure. (`threads` has the shallow ones, by closure, and who waits for whom.)

use crate::plain::for_each_strategy;
use crate::shadow::Shadow;
use core::cell::{Cell, RefCell};
use core::ffi::c_int;
use reentry::{Mutator, UpcallClosure, World, upcall_fn};
use reentry_foreign::{foreign_call_back, foreign_call_back_last};

type A = Shadow<500>;
type B = Shadow<501>;

const DEPTH: c_int = 50;

/// How an upcall is made.
#[derive(Clone, Copy, PartialEq, Debug)]
enum By {
    Item,
    Closure,
}

/// Which world a level is in.
#[derive(Clone, Copy, Debug)]
enum Order {
    /// A and B in turn.
    Alternating,
    /// Half of them in A, and then half in B.
    Halves,
}

impl Order {
    fn is_a(self, level: c_int) -> bool {
        match self {
            Self::Alternating => level % 2 == 0,
            Self::Halves => level < DEPTH / 2,
        }
    }
}

struct Tower<const TAG: u32> {
    a: World<A>,
    b: World<Shadow<TAG>>,
    by: By,
    order: Order,
}

thread_local! {
    /// The levels that each world's collector found, in the innermost call and on the way back.
    static FOUND: RefCell<Vec<(c_int, usize, usize)>> = const { RefCell::new(Vec::new()) };
    static TOWER_B: RefCell<Option<Tower<501>>> = const { RefCell::new(None) };
    static TOWER_A: RefCell<Option<Tower<500>>> = const { RefCell::new(None) };
    static LEVEL: Cell<c_int> = const { Cell::new(0) };
}

/// Collects in a world that this thread is foreign in, and says how many objects are left there.
fn collect<const TAG: u32>(world: &World<Shadow<TAG>>) -> usize {
    world.pause(|stopped| {
        stopped.vm().collect(stopped);
        stopped.vm().heap().live_objects()
    })
}

/// One level: an object in the frame and one in the call; C calls the next level, in the world whose turn it is; both are there afterwards.
fn level<const OWN: u32, const TAG: u32>(
    mutator: &mut Mutator<Shadow<OWN>>,
    level: c_int,
    tower: &'static std::thread::LocalKey<RefCell<Option<Tower<TAG>>>>,
    items: [extern "C" fn(c_int) -> c_int; 2],
) -> c_int {
    let text = format!("level {level}");
    let slot = Shadow::hold(mutator, &text);
    let object = mutator.vm().heap().alloc(&[], text.as_bytes());
    let mut call = mutator.foreign_call();
    let root = call.root(object);
    let (a, b, by, order) = tower.with_borrow(|tower| {
        let tower = tower.as_ref().expect("set by the test");
        (tower.a.clone(), tower.b.clone(), tower.by, tower.order)
    });
    let below = call.run(|| {
        let below = if level + 1 == DEPTH {
            0
        } else {
            let into_a = order.is_a(level + 1);
            match by {
                // SAFETY: the callback takes what C gives it.
                By::Item => unsafe { foreign_call_back(items[usize::from(!into_a)], level + 1) },
                By::Closure if into_a => {
                    let closure = UpcallClosure::new(&a, |mutator: &mut Mutator<A>, x: c_int| {
                        self::level(mutator, x, tower, items)
                    });
                    // SAFETY: the data pointer is the closure's own, and the closure lives.
                    unsafe { foreign_call_back_last(closure.data_last(), level + 1, closure.data()) }
                }
                By::Closure => {
                    let closure = UpcallClosure::new(&b, |mutator: &mut Mutator<Shadow<TAG>>, x: c_int| {
                        self::level(mutator, x, tower, items)
                    });
                    // SAFETY: as above.
                    unsafe { foreign_call_back_last(closure.data_last(), level + 1, closure.data()) }
                }
            }
        };
        // Foreign in both: each level that is entered is held twice, by its frame and by its call.
        let found = (level, collect(&a), collect(&b));
        FOUND.with_borrow_mut(|all| all.push(found));
        below
    });
    let object = call.get(root);
    drop(call);
    assert_eq!(mutator.vm().heap().bytes(object).unwrap(), text.as_bytes());
    assert_eq!(Shadow::text(mutator, slot), text);
    Shadow::forget(mutator, slot);
    below + 1
}

/// Runs a tower from level 0, which is A's, and checks what the collectors found at each level.
#[track_caller]
fn check<const TAG: u32>(
    tower: &'static std::thread::LocalKey<RefCell<Option<Tower<TAG>>>>,
    items: [extern "C" fn(c_int) -> c_int; 2],
    (a, b): (World<A>, World<Shadow<TAG>>),
    (by, order): (By, Order),
) {
    tower.set(Some(Tower { a: a.clone(), b: b.clone(), by, order }));
    FOUND.take();
    let mut mutator = a.attach().unwrap();
    assert_eq!(level(&mut mutator, 0, tower, items), DEPTH);
    drop(mutator);
    b.detach_foreign_thread().unwrap();
    tower.take();
    let found = FOUND.take();
    assert_eq!(found.len(), DEPTH as usize);
    for (level, in_a, in_b) in found {
        let of_a = (0..=level).filter(|&level| order.is_a(level)).count();
        let entered = usize::try_from(level).unwrap() + 1;
        assert_eq!((in_a, in_b), (2 * of_a, 2 * (entered - of_a)), "{by:?} {order:?} level {level}");
    }
    assert_eq!((a.attached(), b.attached()), (0, 0));
    for reports in [a.vm().take_reports(), b.vm().take_reports()] {
        assert_eq!(reports, [""; 0]);
    }
}

#[test]
fn two_worlds_of_two_types_nested_fifty_deep_each_keep_their_own() {
    fn in_a(mutator: &mut Mutator<A>, x: c_int) -> c_int {
        level(mutator, x, &TOWER_B, [upcall_fn(in_a), upcall_fn(in_b)])
    }
    fn in_b(mutator: &mut Mutator<B>, x: c_int) -> c_int {
        level(mutator, x, &TOWER_B, [upcall_fn(in_a), upcall_fn(in_b)])
    }
    for_each_strategy(|fence| {
        for by in [By::Item, By::Closure] {
            for order in [Order::Alternating, Order::Halves] {
                let (a, b) = (A::world(fence), B::world(fence));
                b.adopt_foreign_threads();
                check(&TOWER_B, [upcall_fn(in_a), upcall_fn(in_b)], (a, b), (by, order));
            }
        }
    });
}

/// A function item goes to the world whose foreign call is the innermost, so it cannot lead from one of them into the other; closures can.
#[test]
fn two_worlds_of_one_type_nested_fifty_deep_each_keep_their_own() {
    extern "C" fn unused(x: c_int) -> c_int {
        x
    }
    for_each_strategy(|fence| {
        for order in [Order::Alternating, Order::Halves] {
            let worlds = (A::world(fence), A::world(fence));
            check(&TOWER_A, [unused, unused], worlds, (By::Closure, order));
        }
    });
}

/// Closures choose the world, items stay in it: at each level an item is called too, and finds the level's own world.
#[test]
fn an_item_called_between_worlds_of_one_type_stays_in_the_innermost() {
    #[derive(Clone, Copy)]
    struct Here(usize);
    thread_local! { static RAN_IN: Cell<Here> = const { Cell::new(Here(0)) }; }
    fn look(mutator: &mut Mutator<A>, x: c_int) -> c_int {
        RAN_IN.set(Here(core::ptr::from_ref(mutator.vm()).addr()));
        x
    }
    fn down(worlds: &[World<A>; 2], mutator: &mut Mutator<A>, level: c_int) {
        let own = core::ptr::from_ref(mutator.vm()).addr();
        let stays = || {
            // SAFETY: the callback takes what C gives it.
            unsafe { foreign_call_back(upcall_fn(look), level) };
            assert_eq!(RAN_IN.get().0, own, "level {level}");
        };
        mutator.foreign_call().run(|| {
            stays();
            if level + 1 < DEPTH {
                let next = UpcallClosure::new(
                    &worlds[usize::try_from(level + 1).unwrap() % 2],
                    |mutator: &mut Mutator<A>, x: c_int| {
                        down(worlds, mutator, x);
                        x
                    },
                );
                // SAFETY: the data pointer is the closure's own, and the closure lives.
                unsafe { foreign_call_back_last(next.data_last(), level + 1, next.data()) };
                stays();
            }
        });
    }
    for_each_strategy(|fence| {
        let worlds = [A::world(fence), A::world(fence)];
        let mut mutator = worlds[0].attach().unwrap();
        down(&worlds, &mut mutator, 0);
        drop(mutator);
        worlds[1].detach_foreign_thread().unwrap();
    });
}
