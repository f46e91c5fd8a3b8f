//! Tests of the heap as a whole: what moves, what stays, and what a stale reference is told.

use super::blocks::POISON;
use super::*;

/// A collection that pins `pins`, then forwards `roots` in place.
fn collect(heap: &Heap, pins: &[Ref], roots: &mut [Ref]) -> CollectionSummary {
    let mut collection = heap.begin_collection();
    for &pin in pins {
        collection.pin(pin).unwrap();
    }
    for root in roots {
        *root = collection.forward(*root).unwrap();
    }
    collection.finish()
}

fn fate(heap: &Heap, r: Ref) -> Fate {
    heap.check(r).unwrap_err().fate
}

fn is_shared<T: Send + Sync>(_: &T) {}

/// The words of a sequence that looks random and is the same each time.
fn words(seed: u64) -> impl Iterator<Item = u64> {
    let step = |x: &u64| {
        let x = x ^ x << 13;
        let x = x ^ x >> 7;
        Some(x ^ x << 17)
    };
    core::iter::successors(Some(seed), step)
}

#[test]
fn an_object_holds_what_was_put_in_it() {
    let heap = Heap::new();
    is_shared(&heap);
    let name = heap.alloc(&[], b"name");
    let pair = heap.alloc(&[name, Ref::NULL], b"xyz");
    let unit = heap.alloc(&[], b"");
    assert_eq!((heap.field_count(pair), heap.byte_count(pair)), (Ok(2), Ok(3)));
    assert_eq!((heap.field(pair, 0), heap.field(pair, 1)), (Ok(name), Ok(Ref::NULL)));
    heap.set_field(pair, 1, unit).unwrap();
    heap.write_bytes(pair, 1, b"!").unwrap();
    assert_eq!((heap.field(pair, 1), heap.bytes(pair)), (Ok(unit), Ok(b"x!z".to_vec())));
    assert_eq!(heap.compare_bytes(name, pair), Ok(Ordering::Less));
    assert_eq!(heap.bytes(unit), Ok(vec![]));
    assert_eq!(heap.live_objects(), 3);
}

#[test]
fn the_payload_is_a_c_string_aligned_to_a_word() {
    let heap = Heap::new();
    for length in 0..70 {
        let r = heap.alloc(&[Ref::NULL], &vec![b'a'; length]);
        let payload = heap.payload(r).unwrap();
        assert_eq!(payload.addr() % align_of::<usize>(), 0);
        // SAFETY: the object lives, and a zero byte follows its bytes.
        assert_eq!(unsafe { payload.add(length).read() }, 0);
        heap.alloc(&[], b"the next object");
    }
}

#[test]
fn every_object_moves_at_every_collection() {
    let heap = Heap::new();
    let leaf = heap.alloc(&[], b"leaf");
    let mut roots = [heap.alloc(&[leaf, Ref::NULL], b"root")];
    heap.set_field(roots[0], 1, roots[0]).unwrap();
    let (mut seen, mut before) = (vec![leaf, roots[0]], roots[0]);
    for number in 1..=12 {
        let summary = collect(&heap, &[], &mut roots);
        assert_eq!((summary.number, summary.moved, summary.pinned, summary.freed), (number, 2, 0, 0));
        let [root] = roots;
        let leaf = heap.field(root, 0).unwrap();
        assert_eq!(heap.field(root, 1), Ok(root), "a cycle is followed");
        assert_eq!(heap.bytes(leaf), Ok(b"leaf".to_vec()));
        assert_eq!(fate(&heap, before), Fate::Moved { collection: number, to: root });
        if number <= 8 {
            assert!(!seen.contains(&root) && !seen.contains(&leaf), "no address comes back in quarantine");
        }
        seen.extend([root, leaf]);
        before = root;
    }
}

#[test]
fn a_pinned_object_stays_through_two_collections_then_moves_then_dies() {
    let heap = Heap::new();
    let child = heap.alloc(&[], b"child");
    let dead = heap.alloc(&[], b"dead");
    let pinned = heap.alloc(&[child], b"pinned");
    let mut children = vec![child];
    for number in 1..=2 {
        let summary = collect(&heap, &[pinned], &mut []);
        assert_eq!((summary.moved, summary.pinned, summary.live), (1, 1, 2));
        assert_eq!(heap.bytes(pinned), Ok(b"pinned".to_vec()));
        children.push(heap.field(pinned, 0).unwrap());
        assert_eq!(heap.bytes(children[number]), Ok(b"child".to_vec()));
        assert_ne!(children[number], children[number - 1], "a pin is for one object, not for what it names");
    }
    assert_eq!(fate(&heap, dead), Fate::Freed { collection: 1 });
    let new = heap.alloc(&[], b"new");
    assert_ne!(new.address() / BLOCK_BYTES, pinned.address() / BLOCK_BYTES, "a kept block takes no objects");

    let mut roots = [pinned];
    collect(&heap, &[], &mut roots);
    assert_eq!(fate(&heap, pinned), Fate::Moved { collection: 3, to: roots[0] });
    assert_eq!(heap.bytes(roots[0]), Ok(b"pinned".to_vec()));
    let summary = collect(&heap, &[], &mut []);
    assert_eq!((summary.freed, summary.live, heap.live_objects()), (2, 0, 0));
    assert_eq!(fate(&heap, roots[0]), Fate::Freed { collection: 4 });
}

#[test]
fn a_transitive_pin_holds_everything_reachable_and_nothing_else() {
    let heap = Heap::new();
    let leaf = heap.alloc(&[], b"leaf");
    let middle = heap.alloc(&[leaf, Ref::NULL], b"");
    let mut other = heap.alloc(&[middle], b"");
    heap.set_field(middle, 1, middle).unwrap();
    let mut collection = heap.begin_collection();
    collection.pin(middle).unwrap();
    collection.pin_transitively(middle).unwrap();
    assert!(collection.is_pinned(leaf) && collection.is_pinned(middle) && !collection.is_pinned(other));
    other = collection.forward(other).unwrap();
    assert_eq!(collection.forward(leaf), Ok(leaf));
    assert_eq!(collection.forward(other), Ok(other), "a slot may be visited twice");
    assert!(!collection.is_pinned(other));
    let summary = collection.finish();
    assert_eq!((summary.pinned, summary.moved), (2, 1));
    assert_eq!((heap.field(other, 0), heap.field(middle, 0)), (Ok(middle), Ok(leaf)));
}

#[test]
#[should_panic(expected = "every pin of a collection comes before its first forward")]
fn a_pin_after_the_first_forward_is_refused() {
    let heap = Heap::new();
    let r = heap.alloc(&[], b"");
    let mut collection = heap.begin_collection();
    collection.forward(r).unwrap();
    let _refused = collection.pin(r);
}

#[test]
fn a_stale_reference_is_named_by_its_fate() {
    let heap = Heap::new();
    let mut roots = [heap.alloc(&[], b"kept")];
    let (kept, lost) = (roots[0], heap.alloc(&[], b"lost"));
    collect(&heap, &[], &mut roots);
    let moved = heap.bytes(kept).unwrap_err();
    assert_eq!(
        moved.to_string(),
        format!("stale reference {kept:?}: its object was moved by collection 1 to {:?}", roots[0])
    );
    assert_eq!(
        heap.field(lost, 0).unwrap_err().to_string(),
        format!("stale reference {lost:?}: its object was freed by collection 1")
    );
    let inside = Ref::from_address(roots[0].address() + 16);
    assert_eq!(
        heap.payload(inside).unwrap_err().to_string(),
        format!("stale reference {inside:?}: it is not an object of this heap")
    );
    assert_eq!(fate(&heap, Ref::NULL), Fate::NotAnObject);
    assert_eq!(heap.set_field(lost, 0, Ref::NULL).unwrap_err().reference, lost);
    let holder = heap.alloc(&[Ref::NULL], b"");
    assert_eq!(heap.set_field(holder, 0, kept), Err(moved));
    assert_eq!(heap.try_alloc(&[kept], b""), Err(moved));
    assert_eq!(heap.compare_bytes(holder, kept), Err(moved));
    let mut collection = heap.begin_collection();
    assert_eq!((collection.pin(kept), collection.forward(kept)), (Err(moved), Err(moved)));
}

#[test]
fn tombstones_are_forgotten_after_the_configured_number_of_collections() {
    let heap = Heap::with_config(HeapConfig { tombstone_collections: 2, quarantine_collections: 100 });
    let lost = heap.alloc(&[], b"lost");
    for _ in 0..2 {
        collect(&heap, &[], &mut []);
        assert_eq!(fate(&heap, lost), Fate::Freed { collection: 1 });
    }
    collect(&heap, &[], &mut []);
    assert_eq!(fate(&heap, lost), Fate::NotAnObject);
}

#[test]
fn old_memory_reads_as_poison_through_the_next_collection() {
    let heap = Heap::new();
    let mut roots = [heap.alloc(&[], b"text"), heap.alloc(&[], b"pinned")];
    let stale = heap.payload(roots[0]).unwrap();
    // The second object is pinned in the first round, so that its block is kept; in the second its block is given up.
    collect(&heap, &[roots[1]], &mut roots[..1]);
    for _ in 0..2 {
        // SAFETY: the memory was given up in this collection or in the one before, so it is mapped.
        assert_eq!(unsafe { stale.cast::<[u8; 4]>().read() }, [POISON; 4]);
        collect(&heap, &[], &mut roots);
    }
}

#[cfg(all(target_os = "linux", not(miri)))]
#[test]
fn old_memory_is_guarded_after_the_next_collection() {
    let access = |address: usize| {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let mut lines = maps.lines().map(|line| line.split([' ', '-']));
        let line = lines.find_map(|mut line| {
            let mut bound = || usize::from_str_radix(line.next().unwrap(), 16).unwrap();
            (bound()..bound()).contains(&address).then(|| line.collect::<Vec<_>>())
        });
        // Split at the dashes as well, no access is four empty parts and a `p`.
        if line.expect("the address is mapped").starts_with(&["rw", "p"]) { "readable" } else { "guarded" }
    };
    let heap = Heap::with_config(HeapConfig { quarantine_collections: 3, ..HeapConfig::default() });
    let stale = heap.alloc(&[], b"text").address();
    for expected in ["readable", "readable", "guarded", "guarded", "guarded"] {
        assert_eq!(access(stale), expected, "after {} collections", heap.collections());
        collect(&heap, &[], &mut []);
    }
}

#[test]
fn a_write_through_a_stale_payload_address_is_reported() {
    let heap = Heap::new();
    let mut roots = [heap.alloc(&[], b"one"), heap.alloc(&[], b"two")];
    let (old, stale) = (roots[1], heap.payload(roots[1]).unwrap());
    collect(&heap, &[], &mut roots);
    // SAFETY: old memory stays mapped until the end of the next collection.
    unsafe { stale.write(b'!') };
    let to = roots[1];
    assert_eq!(heap.stale_writes(), []);
    collect(&heap, &[], &mut roots);
    let lost = StaleReference { reference: old, fate: Fate::Moved { collection: 1, to } };
    assert_eq!(heap.stale_writes(), [lost]);
}

#[test]
fn an_overwritten_header_is_named_and_does_not_stop_a_collection() {
    let heap = Heap::new();
    let before = heap.alloc(&[], b"");
    let victim = heap.alloc(&[before], b"victim");
    let holder = heap.alloc(&[victim], b"");
    let payload = heap.payload(before).unwrap();
    // SAFETY: not foreign code's right, but inside the block: the header of the next object, with no one else about.
    unsafe { payload.add(16).write_bytes(0xFF, 8) };
    assert_eq!(fate(&heap, victim), Fate::Overwritten);
    assert_eq!(heap.resolve_interior(victim.address()), None);
    let mut roots = [holder];
    let summary = collect(&heap, &[], &mut roots);
    assert_eq!((summary.moved, summary.freed), (1, 2));
    assert_eq!(heap.field(roots[0], 0), Ok(victim), "left as it was");
    assert_eq!(fate(&heap, victim), Fate::Freed { collection: 1 });
}

#[test]
fn no_word_faults_whatever_it_is() {
    let heap = Heap::with_config(HeapConfig { tombstone_collections: 3, quarantine_collections: 2 });
    let mut real: Vec<Ref> = (0..500_usize).map(|i| heap.alloc(&[], &vec![7; i % 90])).collect();
    real.push(heap.alloc(&[], &vec![1; 200_000]));
    let mut once = real.clone();
    for round in 0..6 {
        // Every third object is freed or pinned, so that all kinds of block exist.
        let mut kept: Vec<Ref> = real.iter().copied().skip(round % 3).step_by(2).collect();
        collect(&heap, &real[..round], &mut kept);
        real.retain(|&r| heap.owns(r));
        real.extend(kept);
        real.sort_by_key(|r| r.address());
        real.dedup();
        once.extend(&real);
    }
    let near = |word: u64, offset: u64| once[(word % once.len() as u64) as usize].address() + offset as usize;
    let mut valid = 0;
    for (index, word) in words(0x5EED).take(300_000).enumerate() {
        let address = match index % 4 {
            0 => word as usize,
            1 => near(word, word >> 32 & 0xFF),
            2 => near(word, 0).wrapping_sub((word >> 40) as usize & 0xFFFF),
            _ => near(word, 0) & !0xFFF,
        };
        let r = Ref::from_address(address);
        let exact = real.binary_search_by_key(&address, |r| r.address()).is_ok();
        assert_eq!(heap.owns(r), exact, "{r:?}");
        assert_eq!((heap.payload(r).is_ok(), heap.with_bytes(r, drop_slice).is_ok()), (exact, exact));
        let around = heap.resolve_interior(address);
        assert!(around.is_none_or(|around| heap.owns(around) && around.address() <= address));
        valid += usize::from(exact);
    }
    assert!(valid > 100, "the near misses hit sometimes: {valid}");
    let mut collection = heap.begin_collection();
    for word in words(7).take(10_000) {
        assert!(collection.forward(Ref::from_address(word as usize)).is_err());
    }
}

fn drop_slice(_: &[u8]) {}

#[test]
fn a_large_object_has_its_own_memory_and_moves_as_others_do() {
    let heap = Heap::new();
    let small = heap.alloc(&[], b"small");
    let bytes: Vec<u8> = (0..1_000_000).map(|i| i as u8).collect();
    // The second object fills a block to its last granule.
    let full = vec![3; BLOCK_BYTES - 2 * GRANULE_BYTES];
    let mut roots = [heap.alloc(&vec![small; 20_000], &bytes), heap.alloc(&[], &full)];
    for number in 1..=20 {
        let before = roots;
        let pins = if number % 5 == 0 { &before[..1] } else { &[] };
        let summary = collect(&heap, pins, &mut roots);
        assert_eq!((summary.moved, summary.pinned), (3 - pins.len(), pins.len()));
        assert_eq!(roots[0] == before[0], !pins.is_empty());
        assert_eq!(fate(&heap, before[1]), Fate::Moved { collection: number, to: roots[1] });
    }
    let large = roots[0];
    assert_eq!(heap.bytes(roots[1]), Ok(full));
    assert_eq!(heap.bytes(large), Ok(bytes));
    let small = heap.field(large, 19_999).unwrap();
    assert_eq!(heap.bytes(small), Ok(b"small".to_vec()));
    let end = heap.payload(large).unwrap().addr() + 1_000_000;
    assert_eq!(heap.resolve_interior(end), Some(large));
    assert_eq!(heap.resolve_interior(end + 4 * GRANULE_BYTES), None);
}

#[test]
fn an_interior_address_resolves_to_its_object_and_no_other_address_does() {
    let heap = Heap::new();
    let objects: Vec<Ref> = (0..3000).map(|i| heap.alloc(&[Ref::NULL], &vec![1; i % 50])).collect();
    for (index, &r) in objects.iter().enumerate() {
        let last = heap.payload(r).unwrap().addr() + index % 50;
        for address in r.address()..=last {
            assert_eq!(heap.resolve_interior(address), Some(r));
        }
    }
    let end = heap.payload(objects[2999]).unwrap().addr() + 2999 % 50;
    assert_eq!(heap.resolve_interior(end + 16), None);
    assert_eq!(heap.resolve_interior(0), None);
    let mut collection = heap.begin_collection();
    let inside = collection.resolve_interior(objects[7].address() + 20).unwrap();
    collection.pin(inside).unwrap();
    collection.finish();
    assert_eq!(heap.resolve_interior(objects[7].address() + 20), Some(objects[7]));
    assert_eq!(heap.resolve_interior(objects[6].address() + 20), None);
    assert_eq!(heap.resolve_interior(objects[8].address() + 20), None);
}

#[test]
fn a_dropped_collection_leaves_forwarded_and_other_roots_right() {
    let heap = Heap::new();
    let shared = heap.alloc(&[], b"shared");
    let (a, b) = (heap.alloc(&[shared], b"a"), heap.alloc(&[shared], b"b"));
    let mut collection = heap.begin_collection();
    let new_a = collection.forward(a).unwrap();
    let new_shared = collection.forward(shared).unwrap();
    drop(collection);
    assert_eq!((heap.collections(), heap.live_objects()), (1, 3));
    assert_eq!(fate(&heap, a), Fate::Moved { collection: 1, to: new_a });
    assert_eq!((heap.field(new_a, 0), heap.field(b, 0)), (Ok(new_shared), Ok(new_shared)));

    let mut roots = [new_a, b];
    let summary = collect(&heap, &[], &mut roots);
    assert_eq!((summary.moved, summary.freed), (3, 0));
    drop(heap.begin_collection());
    assert_eq!(heap.bytes(roots[1]), Ok(b"b".to_vec()), "an empty collection moves nothing");
}

#[test]
fn a_panic_while_roots_are_enumerated_leaves_the_heap_usable() {
    let heap = Heap::new();
    let r = heap.alloc(&[], b"kept");
    let outcome = std::panic::catch_unwind(|| {
        let _collection = heap.begin_collection();
        panic!("a root could not be read");
    });
    assert!(outcome.is_err());
    assert_eq!(heap.bytes(r), Ok(b"kept".to_vec()));
    assert!(std::panic::catch_unwind(|| heap.field(r, 0)).is_err(), "no such field");
    assert_eq!(heap.live_objects(), 1);
}

#[test]
fn a_hundred_thousand_objects_survive_twenty_collections() {
    let (count, rounds) = if cfg!(miri) { (100, 3) } else { (100_000_u32, 20) };
    let heap = Heap::new();
    let mut roots: Vec<Ref> = (0..count).map(|i| heap.alloc(&[], format!("object {i}").as_bytes())).collect();
    let started = std::time::Instant::now();
    for _ in 0..rounds {
        let summary = collect(&heap, &[], &mut roots);
        assert_eq!((summary.moved, summary.freed), (count as usize, 0));
    }
    let took = started.elapsed();
    assert!(took.as_secs() < 20, "{took:?}: even an unoptimised build needs a second or two");
    for (i, &root) in roots.iter().enumerate() {
        assert!(heap.with_bytes(root, |bytes| bytes == format!("object {i}").as_bytes()).unwrap());
    }
}
