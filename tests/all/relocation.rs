//! I6: when a managed stack moves, every saved sp, fp and in-place root that pointed into it follows; nothing else changes.
//!
//! Calls and upcalls are nested ten deep, each call with an anchor and roots in one stack, and the innermost upcall (or a collector)
//! moves the stack. The stacks are parts of one piece of memory, so that every address is one that may be read.

use crate::plain::Plain;
use core::ffi::c_int;
use core::ops::Range;
use core::ptr::{self, NonNull};
use proptest::prelude::{Strategy, any};
use proptest::test_runner::{Config, TestRunner};
use reentry::{Anchor, ArgumentPlan, Mutator, RelocationError, StackEnd, StoppedWorld, UpcallClosure, World};
use reentry_foreign::foreign_call_back_last;
use std::sync::Mutex;
use std::sync::mpsc::channel;

type Host = Plain<600>;

const WORD: usize = size_of::<usize>();
const DEPTH: usize = 10;
/// Each level has a frame of this many words: fp points to its first, the in-place root is its second, sp points behind it.
const FRAME: usize = 3;
const USED: usize = DEPTH * FRAME;

fn world() -> World<Host> {
    World::new(Host::new())
}

/// Memory that stacks are put in.
struct Arena {
    words: Mutex<Vec<usize>>,
    start: usize,
    end: usize,
}

impl Arena {
    fn new(words: usize) -> Self {
        // Every word different, and none of them an address.
        let mut memory: Vec<usize> = (1..=words).collect();
        let start = memory.as_mut_ptr().expose_provenance();
        Self { start, end: start + words * WORD, words: Mutex::new(memory) }
    }

    /// The addresses of some of its words.
    fn range(&self, first: usize, words: usize) -> Range<usize> {
        let start = self.start + first * WORD;
        assert!(start + words * WORD <= self.end);
        start..start + words * WORD
    }

    /// Moves the words of a stack, keeping those at one end.
    fn copy(&self, old: &Range<usize>, new: &Range<usize>, end: StackEnd) {
        let words = old.len().min(new.len()) / WORD;
        let index = |address: usize| (address - self.start) / WORD;
        let (from, to) = match end {
            StackEnd::Low => (index(old.start), index(new.start)),
            StackEnd::High => (index(old.end) - words, index(new.end) - words),
        };
        self.words.lock().unwrap().copy_within(from..from + words, to);
    }
}

/// Which address of a stack the word `index` of its `end` has.
fn address(stack: &Range<usize>, end: StackEnd, index: usize) -> usize {
    match end {
        StackEnd::Low => stack.start + index * WORD,
        StackEnd::High => stack.end - index * WORD,
    }
}

/// One call's saved addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Saved {
    anchor: Anchor,
    slot: usize,
}

/// What level `level` saves in `stack`.
fn saved(stack: &Range<usize>, end: StackEnd, level: usize, pc: usize) -> Saved {
    // A stack that grows down has its frames below fp.
    let slot = match end {
        StackEnd::Low => level * FRAME + 1,
        StackEnd::High => level * FRAME + 2,
    };
    Saved {
        anchor: Anchor::new(pc, address(stack, end, (level + 1) * FRAME), address(stack, end, level * FRAME)),
        slot: address(stack, end, slot),
    }
}

/// Makes a foreign call for each of `levels`, one inside the other, and runs `innermost` in the upcall of the last. Each call also declares
/// a root by value, a pin and a kept value that look like addresses of the stack. Returns what each call's in-place token says afterwards:
/// where the slot is, and what it holds; the newest call's first.
fn nest(
    mutator: &mut Mutator<Host>,
    world: &World<Host>,
    levels: &[Saved],
    innermost: &(dyn Fn(&mut Mutator<Host>) + Sync),
) -> Vec<(usize, usize)> {
    let Some((level, rest)) = levels.split_first() else {
        innermost(mutator);
        return Vec::new();
    };
    let tokens = Mutex::new(Vec::new());
    let body = |mutator: &mut Mutator<Host>, _: c_int| {
        *tokens.lock().unwrap() = nest(mutator, world, rest, innermost);
        0
    };
    let closure = UpcallClosure::new(world, body);
    let mut call = mutator.foreign_call().at(level.anchor);
    let number = call.root(level.slot);
    call.pin(level.anchor.fp).unwrap();
    call.keep_alive(&level.slot);
    let slot = NonNull::new(ptr::with_exposed_provenance_mut(level.slot)).unwrap();
    // SAFETY: a word of the arena, which outlives the call; wherever the stack is moved to is in the arena too.
    let root = unsafe { call.root_in_place(slot) }.unwrap();
    // SAFETY: the data is the closure's, which lives.
    call.run(|| unsafe { foreign_call_back_last(closure.data_last(), 0, closure.data()) });
    assert_eq!(call.get(number), level.slot, "a value that looks like an address is none");
    let here = (root.slot().addr(), call.get(root));
    drop(call);
    let mut tokens = core::mem::take(&mut *tokens.lock().unwrap());
    tokens.push(here);
    tokens
}

/// What the only mutator's calls have saved, newest first. The safepoint the look is taken at is left out.
fn look(stopped: &StoppedWorld<'_, Host>) -> Vec<Saved> {
    let mutator = stopped.mutators().next().unwrap();
    let calls =
        mutator.activations().filter(|activation| activation.kind() == reentry::FrameKind::ForeignCall);
    calls
        .map(|activation| {
            let (mut slot, mut others) = (0, Vec::new());
            activation.for_each_declared(|declared| match declared.plan {
                ArgumentPlan::RootInPlace => slot = declared.slot.address(),
                _ => others.push(declared.slot.load()),
            });
            assert_eq!(others.len(), 2);
            Saved { anchor: activation.anchor(), slot }
        })
        .collect()
}

/// An anchor outside every stack, for pauses.
const AWAY: Anchor = Anchor::new(1, 2, 3);

/// Who moves the stack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mover {
    /// The innermost upcall.
    Mutator,
    /// A collector, in a pause.
    Collector,
}

/// Moves a stack that [`Arena::copy`] has just copied.
///
/// # Errors
///
/// What the crate refuses.
fn relocate(
    mutator: &mut Mutator<Host>,
    mover: Mover,
    old: Range<usize>,
    new: Range<usize>,
    end: StackEnd,
) -> Result<usize, RelocationError> {
    match mover {
        // SAFETY: the arena's memory is exposed and outlives the mutator, and the words have been copied.
        Mover::Mutator => unsafe { mutator.relocate_stack(old, new, end) },
        Mover::Collector => mutator.pause_at(AWAY, |stopped| {
            // SAFETY: as above.
            unsafe { stopped.mutators().next().unwrap().relocate_stack(old, new, end) }
        }),
    }
}

/// Go #69085: growing, shrinking and moving without either, with either end kept, from ten levels above.
#[test]
fn everything_saved_at_ten_depths_follows_a_stack_that_grows_shrinks_or_moves() {
    for end in [StackEnd::Low, StackEnd::High] {
        for mover in [Mover::Mutator, Mover::Collector] {
            // A stack of 30 words is full: the newest sp is one past its end.
            for (old_words, new_words) in [(USED, 200), (200, USED), (USED, USED), (64, 65), (65, 64)] {
                let arena = Arena::new(600);
                let (old, new) = (arena.range(17, old_words), arena.range(300, new_words));
                // The pc is an address of the stack as well: it must not be touched.
                let pc = old.start;
                let before: Vec<_> = (0..DEPTH).map(|level| saved(&old, end, level, pc)).collect();
                let mut after: Vec<_> = (0..DEPTH).map(|level| saved(&new, end, level, pc)).collect();
                let contents: Vec<usize> = before
                    .iter()
                    .map(|level| arena.words.lock().unwrap()[(level.slot - arena.start) / WORD])
                    .collect();
                let world = world();
                let mut mutator = world.attach().unwrap();
                mutator.declare_stack(old.clone()).unwrap();
                let tokens = nest(&mut mutator, &world, &before, &|mutator| {
                    let mut newest_first = before.clone();
                    newest_first.reverse();
                    assert_eq!(mutator.pause_at(AWAY, look), newest_first);
                    arena.copy(&old, &new, end);
                    let changed = relocate(mutator, mover, old.clone(), new.clone(), end);
                    assert_eq!(changed, Ok(3 * DEPTH), "an sp, an fp and a slot for each level");
                    let mut newest_first = after.clone();
                    newest_first.reverse();
                    assert_eq!(mutator.pause_at(AWAY, look), newest_first, "{end:?} {mover:?}");
                });
                // The tokens on the way back: the slots' addresses, and what was in them.
                after.reverse();
                let expected: Vec<_> = after
                    .iter()
                    .zip(contents.iter().rev())
                    .map(|(level, word)| (level.slot, *word))
                    .collect();
                assert_eq!(tokens, expected, "{end:?} {mover:?} {old_words} {new_words}");
            }
        }
    }
}

/// A stack may grow where it is, or slide over itself: what was rebased once is not rebased again.
#[test]
fn a_stack_may_move_to_a_place_that_overlaps_the_old_one() {
    for end in [StackEnd::Low, StackEnd::High] {
        for (first, words) in [(100, 60), (100, 31), (60, 100), (101, 40), (99, 40), (115, 40), (85, 40)] {
            let arena = Arena::new(300);
            let (old, new) = (arena.range(100, 40), arena.range(first, words));
            let before: Vec<_> = (0..DEPTH).map(|level| saved(&old, end, level, 7)).collect();
            let mut after: Vec<_> = (0..DEPTH).map(|level| saved(&new, end, level, 7)).collect();
            after.reverse();
            let world = world();
            let mut mutator = world.attach().unwrap();
            mutator.declare_stack(old.clone()).unwrap();
            nest(&mut mutator, &world, &before, &|mutator| {
                arena.copy(&old, &new, end);
                let changed = relocate(mutator, Mover::Mutator, old.clone(), new.clone(), end);
                assert_eq!(changed, Ok(3 * DEPTH));
                assert_eq!(mutator.pause_at(AWAY, look), after, "{end:?} to {first}");
            });
        }
    }
}

/// Only the stack that moves: a mutator's other stacks, and other mutators, keep what they have.
#[test]
fn what_points_into_another_stack_does_not_move() {
    let arena = Arena::new(600);
    let (moving, resting, new) = (arena.range(0, 64), arena.range(100, 64), arena.range(200, 64));
    // Levels alternate between the two stacks; the fourth's sp and fp are in different ones.
    let mut levels: Vec<_> = (0..6)
        .map(|level| saved(if level % 2 == 0 { &moving } else { &resting }, StackEnd::Low, level, 7))
        .collect();
    levels[3].anchor.sp = moving.start + 5 * WORD;
    let mut expected = levels.clone();
    let shift = new.start - moving.start;
    for level in [0, 2, 4] {
        expected[level].anchor.sp += shift;
        expected[level].anchor.fp += shift;
        expected[level].slot += shift;
    }
    expected[3].anchor.sp += shift;
    expected.reverse();
    let world = world();
    let mut mutator = world.attach().unwrap();
    mutator.declare_stack(moving.clone()).unwrap();
    mutator.declare_stack(resting.clone()).unwrap();

    // Another mutator, in a foreign call, whose numbers are the same and whose stack they are not.
    std::thread::scope(|scope| {
        let (in_call, is_in_call) = channel::<()>();
        // Dropped if an assertion fails, too: the other thread ends then.
        let (over, is_over) = channel::<()>();
        let other_levels = levels.clone();
        let other_world = world.clone();
        let other = scope.spawn(move || {
            let mut other = other_world.attach().unwrap();
            let mut call = other.foreign_call().at(other_levels[0].anchor);
            let slot = NonNull::new(ptr::with_exposed_provenance_mut(other_levels[0].slot)).unwrap();
            // SAFETY: a word of the arena, which outlives the call.
            let root = unsafe { call.root_in_place(slot) }.unwrap();
            call.run(|| {
                drop(in_call);
                is_over.recv().unwrap_err();
            });
            (root.slot().addr(), other_levels[0].slot)
        });
        is_in_call.recv().unwrap_err();
        nest(&mut mutator, &world, &levels, &|mutator| {
            arena.copy(&moving, &new, StackEnd::Low);
            let changed = relocate(mutator, Mover::Mutator, moving.clone(), new.clone(), StackEnd::Low);
            assert_eq!(changed, Ok(10));
            let id = mutator.id();
            let (own, others) = mutator.pause_at(AWAY, |stopped| {
                let anchors = |own: bool| {
                    let mutator = stopped.mutators().find(|mutator| (mutator.id() == id) == own).unwrap();
                    let calls = mutator.activations().filter(|a| a.kind() == reentry::FrameKind::ForeignCall);
                    calls.map(|activation| activation.anchor()).collect::<Vec<_>>()
                };
                (anchors(true), anchors(false))
            });
            assert_eq!(own, expected.iter().map(|level| level.anchor).collect::<Vec<_>>());
            assert_eq!(others, [levels[0].anchor]);
        });
        drop(over);
        let (slot, before) = other.join().unwrap();
        assert_eq!(slot, before);
    });
}

/// Each refusal, by name, leaves every saved address and the list of stacks as they were: the right move still works.
#[test]
fn a_refused_relocation_changes_nothing() {
    for end in [StackEnd::Low, StackEnd::High] {
        for mover in [Mover::Mutator, Mover::Collector] {
            let arena = Arena::new(600);
            let old = arena.range(100, 64);
            let levels: Vec<_> = (0..DEPTH).map(|level| saved(&old, end, level, 7)).collect();
            let mut newest_first = levels.clone();
            newest_first.reverse();
            let world = world();
            let mut mutator = world.attach().unwrap();
            mutator.declare_stack(old.clone()).unwrap();
            nest(&mut mutator, &world, &levels, &|mutator| {
                let elsewhere = arena.range(300, 64);
                let refusals: Vec<(Range<usize>, Range<usize>, RelocationError)> = vec![
                    // Not declared; half of it; larger than it.
                    unknown(&arena.range(0, 64), &elsewhere, &old),
                    unknown(&arena.range(100, 32), &elsewhere, &old),
                    unknown(&arena.range(100, 65), &elsewhere, &old),
                    unknown(&arena.range(99, 64), &elsewhere, &old),
                    // No stack at all.
                    (old.clone(), 0..0, RelocationError::Empty(0..0)),
                    (old.clone(), old.start..old.start, RelocationError::Empty(old.start..old.start)),
                    #[expect(clippy::reversed_empty_ranges, reason = "it is to be refused")]
                    (old.clone(), 64..32, RelocationError::Empty(64..32)),
                ];
                for (from, to, error) in refusals {
                    assert_eq!(relocate(mutator, mover, from, to, end), Err(error));
                    assert_eq!(mutator.pause_at(AWAY, look), newest_first, "{end:?} {mover:?}");
                }
                // Too small for what is saved, down to the last word.
                for words in [1, FRAME, USED - 1] {
                    let new = arena.range(300, words);
                    let Err(RelocationError::OutsideNewStack { what, address, moved, new: given }) =
                        relocate(mutator, mover, old.clone(), new.clone(), end)
                    else {
                        panic!("{words} words were enough")
                    };
                    let named = newest_first.iter().find(|level| {
                        [(level.anchor.sp, "sp"), (level.anchor.fp, "fp"), (level.slot, "root slot")]
                            .contains(&(address, what))
                    });
                    assert!(named.is_some(), "{what} {address:#x}");
                    assert!(given == new && !(new.start..=new.end).contains(&moved));
                    assert_eq!(mutator.pause_at(AWAY, look), newest_first, "{end:?} {mover:?} {words}");
                }
                let new = arena.range(300, USED);
                arena.copy(&old, &new, end);
                assert_eq!(relocate(mutator, mover, old.clone(), new, end), Ok(3 * DEPTH));
            });
        }
    }
}

fn unknown(
    from: &Range<usize>,
    to: &Range<usize>,
    known: &Range<usize>,
) -> (Range<usize>, Range<usize>, RelocationError) {
    let error = RelocationError::UnknownStack { old: from.clone(), known: vec![known.clone()] };
    (from.clone(), to.clone(), error)
}

/// The end of a stack is a place for a stack pointer and not for a slot: a word there is outside.
#[test]
fn a_root_slot_that_would_be_at_the_end_of_the_new_stack_is_refused() {
    let arena = Arena::new(300);
    let (old, new) = (arena.range(0, 64), arena.range(100, 32));
    // The slot is the word that the new stack is one short of.
    let level = Saved { anchor: Anchor::new(7, old.start, old.start), slot: old.start + 32 * WORD };
    let world = world();
    let mut mutator = world.attach().unwrap();
    mutator.declare_stack(old.clone()).unwrap();
    let tokens = nest(&mut mutator, &world, &[level], &|mutator| {
        let refused = relocate(mutator, Mover::Mutator, old.clone(), new.clone(), StackEnd::Low);
        let error = RelocationError::OutsideNewStack {
            what: "root slot",
            address: level.slot,
            moved: new.end,
            new: new.clone(),
        };
        assert_eq!(refused, Err(error));
    });
    assert_eq!(tokens[0].0, level.slot);
}

/// A moved stack is known by its new place, and by no other.
#[test]
fn a_stack_is_moved_again_from_where_it_is() {
    let arena = Arena::new(600);
    let world = world();
    let mut mutator = world.attach().unwrap();
    let places = [arena.range(0, 64), arena.range(100, 100), arena.range(300, 40), arena.range(0, 64)];
    let level = saved(&places[0], StackEnd::Low, 0, 7);
    mutator.declare_stack(places[0].clone()).unwrap();
    nest(&mut mutator, &world, &[level], &|mutator| {
        for pair in places.windows(2) {
            arena.copy(&pair[0], &pair[1], StackEnd::Low);
            let moved = relocate(mutator, Mover::Mutator, pair[0].clone(), pair[1].clone(), StackEnd::Low);
            assert_eq!(moved, Ok(3));
            let again = relocate(mutator, Mover::Mutator, pair[0].clone(), pair[1].clone(), StackEnd::Low);
            let error = RelocationError::UnknownStack { old: pair[0].clone(), known: vec![pair[1].clone()] };
            assert_eq!(again, Err(error));
            assert_eq!(mutator.pause_at(AWAY, look), [saved(&pair[1], StackEnd::Low, 0, 7)]);
        }
    });
}

/// Stacks do not overlap, are not empty, and are declared once.
#[test]
fn a_stack_that_is_empty_or_overlaps_another_is_not_declared() {
    let arena = Arena::new(300);
    let world = world();
    let mut mutator = world.attach().unwrap();
    let known = arena.range(100, 50);
    mutator.declare_stack(known.clone()).unwrap();
    for (first, words) in [(100, 50), (110, 10), (50, 200), (50, 51), (149, 10)] {
        let declared = arena.range(first, words);
        let error = RelocationError::Overlaps { declared: declared.clone(), known: known.clone() };
        assert_eq!(mutator.declare_stack(declared), Err(error));
    }
    assert_eq!(mutator.declare_stack(5..5), Err(RelocationError::Empty(5..5)));
    // Neighbours are no overlap.
    mutator.declare_stack(arena.range(50, 50)).unwrap();
    mutator.declare_stack(arena.range(150, 50)).unwrap();
    // Another mutator's stacks are its own affair; and when this one is gone, so are its declarations.
    drop(mutator);
    let mut mutator = world.attach().unwrap();
    mutator.declare_stack(known).unwrap();
}

#[test]
fn a_stack_can_be_withdrawn_when_nothing_saved_lies_in_it() {
    let arena = Arena::new(300);
    let world = world();
    let mut mutator = world.attach().unwrap();
    let stack = arena.range(100, 50);
    let within = stack.clone();
    let withdraw = UpcallClosure::new(&world, move |mutator: &mut Mutator<Host>, x: c_int| {
        let refused = RelocationError::InUse { stack: within.clone(), words: 2 };
        assert_eq!(mutator.withdraw_stack(within.clone()), Err(refused), "sp and fp of the call");
        x
    });
    mutator.declare_stack(stack.clone()).unwrap();
    let unknown = RelocationError::UnknownStack { old: arena.range(100, 49), known: vec![stack.clone()] };
    assert_eq!(mutator.withdraw_stack(arena.range(100, 49)), Err(unknown));
    let anchor = Anchor::new(1, stack.start + 8, stack.start + 16);
    let (function, data) = (withdraw.data_last(), withdraw.data());
    // SAFETY: the data pointer is the closure's own, and the closure lives.
    mutator.foreign_call().at(anchor).run(|| unsafe { foreign_call_back_last(function, 1, data) });
    mutator.withdraw_stack(stack.clone()).unwrap();
    assert!(mutator.withdraw_stack(stack.clone()).is_err(), "once");
    // The memory serves for a larger stack.
    mutator.declare_stack(arena.range(90, 80)).unwrap();
}

/// Frames pushed in the upcall move the stack at every level on the way in: each level's record is rebased by all the moves after it.
#[test]
fn a_stack_that_moves_at_every_level_takes_all_older_levels_along() {
    let arena = Arena::new(4000);
    let places: Vec<_> = (0..=DEPTH).map(|level| arena.range(300 * level, 40 + 20 * level)).collect();
    let world = world();
    let mut mutator = world.attach().unwrap();
    mutator.declare_stack(places[0].clone()).unwrap();
    fn descend(
        mutator: &mut Mutator<Host>,
        world: &World<Host>,
        arena: &Arena,
        places: &[Range<usize>],
        level: usize,
    ) {
        if level == DEPTH {
            let expected: Vec<_> =
                (0..DEPTH).rev().map(|level| saved(&places[DEPTH], StackEnd::Low, level, 7)).collect();
            assert_eq!(mutator.pause_at(AWAY, look), expected);
            return;
        }
        let own = saved(&places[level], StackEnd::Low, level, 7);
        let tokens = nest(mutator, world, &[own], &|mutator| {
            arena.copy(&places[level], &places[level + 1], StackEnd::Low);
            let (old, new) = (places[level].clone(), places[level + 1].clone());
            assert_eq!(relocate(mutator, Mover::Mutator, old, new, StackEnd::Low), Ok(3 * (level + 1)));
            descend(mutator, world, arena, places, level + 1);
        });
        assert_eq!(tokens[0].0, saved(&places[DEPTH], StackEnd::Low, level, 7).slot);
    }
    descend(&mut mutator, &world, &arena, &places, 0);
}

/// One move of the model below: the new place, its size, and the end that is kept.
type Move = (usize, usize, bool);

/// Any sequence of moves of one stack does to the saved addresses what a model of one line does; a refused one does nothing.
#[test]
fn any_sequence_of_moves_maps_every_saved_address_as_the_model_does() {
    /// Where the model puts an address, or what it refuses.
    fn model(at: usize, old: &Range<usize>, new: &Range<usize>, end: StackEnd, slot: bool) -> Option<usize> {
        if at < old.start || at > old.end || (slot && at == old.end) {
            return Some(at);
        }
        let moved = match end {
            StackEnd::Low => (at - old.start).checked_add(new.start)?,
            StackEnd::High => new.end.checked_sub(old.end - at)?,
        };
        let inside = new.start <= moved && (moved < new.end || (!slot && moved == new.end));
        inside.then_some(moved)
    }
    let words = any::<(u8, u8, u8)>().prop_map(|(sp, fp, slot)| (sp as usize, fp as usize, slot as usize));
    let levels = proptest::collection::vec(words, 1..=DEPTH);
    let moves = proptest::collection::vec((0..200_usize, 1..256_usize, any::<bool>()), 1..8);
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(300) });
    let property = |(levels, moves): (Vec<(usize, usize, usize)>, Vec<Move>)| {
        let arena = Arena::new(512);
        let declared = arena.range(0, 128);
        // Half of the words are outside the stack at first.
        let levels: Vec<_> = levels
            .iter()
            .map(|(sp, fp, slot)| Saved {
                anchor: Anchor::new(7, arena.start + sp * WORD, arena.start + fp * WORD),
                slot: arena.start + slot * WORD,
            })
            .collect();
        let world = world();
        let mut mutator = world.attach().unwrap();
        mutator.declare_stack(declared.clone()).unwrap();
        let moves = Mutex::new(moves);
        nest(&mut mutator, &world, &levels, &|mutator| {
            let mut expected: Vec<_> = levels.iter().rev().copied().collect();
            let mut stack = declared.clone();
            for &(first, words, high) in &*moves.lock().unwrap() {
                let end = if high { StackEnd::High } else { StackEnd::Low };
                let new = arena.range(first, words);
                let mapped: Option<Vec<Saved>> = expected
                    .iter()
                    .map(|level| {
                        Some(Saved {
                            anchor: Anchor::new(
                                level.anchor.pc,
                                model(level.anchor.sp, &stack, &new, end, false)?,
                                model(level.anchor.fp, &stack, &new, end, false)?,
                            ),
                            slot: model(level.slot, &stack, &new, end, true)?,
                        })
                    })
                    .collect();
                if mapped.is_some() {
                    arena.copy(&stack, &new, end);
                }
                let moved = relocate(mutator, Mover::Mutator, stack.clone(), new.clone(), end);
                assert_eq!(moved.is_ok(), mapped.is_some(), "{stack:x?} to {new:x?}: {moved:?}");
                if let Some(mapped) = mapped {
                    (expected, stack) = (mapped, new);
                }
                assert_eq!(mutator.pause_at(AWAY, look), expected);
            }
        });
        Ok(())
    };
    runner.run(&(levels, moves), property).unwrap();
}
