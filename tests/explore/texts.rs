//! What an exploration says: schedules as text, what it covered, and what is wrong with a scenario that is not the same each time.

use core::sync::atomic::{AtomicUsize, Ordering};
use reentry::explore::{Arrival, Explorer, Schedule, ScheduleError, Step, When};
use reentry::testkit::TestVm;
use reentry::{FrameKind, StoppedMutator, World, upcall_fn};

fn world() -> World<TestVm> {
    World::new(TestVm::new())
}

fn call_once(world: &World<TestVm>) {
    let mut mutator = world.attach().unwrap();
    let callback: extern "C" fn() = upcall_fn(|_: &mut reentry::Mutator<TestVm>| ());
    mutator.foreign_call().run(|| callback());
}

#[test]
fn the_steps_of_a_call_with_an_upcall_are_these() {
    use Step::*;
    let explored = Explorer::new("steps", world).explore(call_once).unwrap();
    let expected = [
        Attaching,
        Attached,
        CallPrepared,
        CallPublished,
        UpcallArrived,
        UpcallRetracted,
        UpcallRunning,
        UpcallEnding,
        UpcallReturned,
        CallReturning,
        CallRetracted,
        CallBack,
        Detaching,
        DetachPublished,
        Detached,
    ];
    assert_eq!(explored.steps(), expected);
    assert_eq!((explored.singles(), explored.pairs()), (0, 0), "there is no action");
}

#[test]
fn every_single_step_and_every_pair_is_run_and_counted() {
    let explorer = Explorer::new("count", world).on_a_thread("look", |world| assert!(world.attached() < 2));
    let explored = explorer.explore(call_once).unwrap();
    let steps = explored.steps().len();
    assert_eq!(explored.singles(), steps);
    assert_eq!(explored.pairs(), steps * (steps + 1) / 2);
    assert_eq!(explored.reached()[&Step::CallPrepared], 2 + explored.singles() + explored.pairs());
    let text = explored.to_string();
    assert!(text.contains("call-prepared") && text.contains("repair-begun           not reached"), "{text}");
}

/// Collection at every crossing, the stress mode of other systems: one schedule of this one.
#[test]
fn an_action_that_arrives_at_every_step_takes_place_between_any_two() {
    let explorer = Explorer::new("every", world).pausing("collect", |stopped| stopped.vm().collect(stopped));
    let totals = core::cell::Cell::new(0);
    let steps = explorer.replay(&"every: collect@every".parse().unwrap(), |world| {
        call_once(world);
        totals.set(world.vm().totals().0);
    });
    let published = steps.unwrap().into_iter().filter(|step| {
        use Step::*;
        matches!(
            step,
            Attaching
                | CallPublished
                | UpcallArrived
                | UpcallReturned
                | CallReturning
                | DetachPublished
                | Detached
        )
    });
    assert!(totals.get() >= published.count() as u64, "{}", totals.get());
}

#[test]
fn pairs_of_a_scenario_with_many_steps_are_seeded_and_the_same_each_time() {
    let explore = |seed| {
        let explorer = Explorer::new("seeded", world)
            .pausing("collect", |stopped| stopped.vm().collect(stopped))
            .pairs(5, 50, seed);
        explorer.explore(call_once).unwrap()
    };
    let (one, again) = (explore(7), explore(7));
    assert_eq!(one, again);
    assert_eq!(one.pairs(), 50);
    assert!(one.to_string().contains("seed 7"));
    assert_ne!(one.reached(), explore(8).reached());
}

#[test]
fn a_scenario_that_takes_other_steps_the_second_time_is_refused() {
    let runs = AtomicUsize::new(0);
    let failed = Explorer::new("fickle", world)
        .explore(|world| {
            if runs.fetch_add(1, Ordering::Relaxed) == 1 {
                world.attach().unwrap().poll();
            } else {
                drop(world.attach());
            }
        })
        .unwrap_err();
    assert!(
        failed.what.contains("does not take the same steps each time: two runs differ at step 3"),
        "{failed}"
    );
}

#[test]
fn a_replay_says_when_its_step_is_another_and_when_there_is_no_such_action() {
    let explorer = Explorer::new("stale", world).pausing("collect", |stopped| stopped.vm().collect(stopped));
    let schedule: Schedule = "stale: collect@3:upcall-running".parse().unwrap();
    let failed = explorer.replay(&schedule, call_once).unwrap_err();
    assert!(
        failed.what.contains("step 3 is call-prepared, and the schedule says upcall-running"),
        "{failed}"
    );
    let failed = explorer.replay(&"stale: compact@3".parse().unwrap(), call_once).unwrap_err();
    assert!(failed.what.contains("there is no action `compact`"), "{failed}");
}

#[test]
fn a_failed_action_names_itself_and_its_schedule() {
    let explorer = Explorer::new("failing", world).pausing("refuse", |stopped| {
        let in_c = |mutator: &StoppedMutator<'_, TestVm>| {
            mutator.activations().any(|activation| activation.kind() == FrameKind::ForeignCall)
        };
        if stopped.mutators().any(|mutator| in_c(&mutator)) { Err("a mutator is in C") } else { Ok(()) }
    });
    let failed = explorer.explore(call_once).unwrap_err();
    let text = failed.to_string();
    // The stop that arrives when the thread is attached is in force when it has next published: the call.
    assert!(text.starts_with("`refuse`: a mutator is in C"), "{text}");
    assert!(text.contains("REENTRY_SCHEDULE=\"failing: refuse@"), "{text}");
    assert!(text.contains("<-- refuse"), "{text}");
}

/// The environment variable that makes this binary run the scenario that hangs.
const HANG: &str = "REENTRY_TEST_HANG";

/// Waits for a pause that waits for it: managed, and never polling.
#[test]
fn a_run_that_does_not_end_ends_the_process_with_its_schedule() {
    if std::env::var_os(HANG).is_some() {
        let hangs = |world: &World<TestVm>| {
            let _mutator = world.attach().unwrap();
            loop {
                std::thread::park();
            }
        };
        let explorer = Explorer::new("hangs", world).limit(core::time::Duration::from_millis(300));
        let failed = explorer.replay(&"hangs: ".parse().unwrap(), hangs);
        unreachable!("{failed:?}");
    }
    let name = "texts::a_run_that_does_not_end_ends_the_process_with_its_schedule";
    let child = crate::emulator::this_binary()
        .args([name, "--exact", "--nocapture"])
        .env(HANG, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stderr);
    assert!(!child.status.success());
    assert!(said.contains("reentry: fatal: a run has not ended after 300ms"), "{said}");
    assert!(said.contains("REENTRY_SCHEDULE=\"hangs:"), "{said}");
}

#[test]
fn schedules_are_text_and_back() {
    let schedule = Schedule {
        scenario: "a name".into(),
        arrivals: vec![
            Arrival {
                action: "collect".into(),
                at: Some(7),
                when: When::AtOnce,
                step: Some(Step::CallPublished),
            },
            Arrival { action: "look".into(), at: Some(12), when: When::WhenItWaits, step: None },
        ],
    };
    assert_eq!(schedule.to_string().parse(), Ok(schedule));
    let every: Schedule = "a: collect@every".parse().unwrap();
    assert_eq!((every.arrivals[0].at, &*every.to_string()), (None, "a: collect@every"));
    for (text, error) in [
        ("nothing", ScheduleError::NoScenario("nothing".into())),
        ("a: collect", ScheduleError::NoArrival("collect".into())),
        ("a: collect@0", ScheduleError::NoArrival("collect@0".into())),
        ("a: collect@1:nowhere", ScheduleError::NoStep("nowhere".into())),
        ("a: b@1, b@2, b@3", ScheduleError::TooMany(3)),
    ] {
        assert_eq!(text.parse::<Schedule>(), Err(error));
    }
    for step in Step::ALL {
        let text = format!("a: b@1:{step}");
        assert_eq!(text.parse::<Schedule>().unwrap().arrivals[0].step, Some(*step));
    }
}
