//! Tests of the verifier and of liveness.

use super::*;

/// Adds an instruction to a function with a reference slot and an integer slot.
type Writer = fn(&mut FunctionBuilder, Slot, Slot) -> usize;

fn live(function: &Function, pc: usize) -> Vec<Slot> {
    LiveMaps::analyse(function).live_references(pc).collect()
}

fn across(function: &Function, pc: usize) -> Vec<Slot> {
    LiveMaps::analyse(function).live_across(pc).collect()
}

fn verified(builder: FunctionBuilder) -> Function {
    let program = Program::new(vec![builder.finish()]).unwrap();
    program.functions()[0].clone()
}

fn fault(builder: FunctionBuilder) -> (usize, Fault) {
    let error = Program::new(vec![builder.finish()]).unwrap_err();
    assert_eq!(error.function, "f");
    (error.pc, error.fault)
}

#[test]
fn an_argument_not_used_later_is_live_at_x_and_dead_at_y() {
    let mut f = Function::builder("f");
    let (dropped, kept) = (f.reference_parameter(), f.reference_parameter());
    let result = f.reference_slot();
    let x = f.foreign(Some(result), 3, &[dropped, kept]);
    f.pair(result, result, kept);
    f.give_back(result);
    let f = verified(f);
    let maps = LiveMaps::analyse(&f);
    assert_eq!(maps.live_at_call_site(x).collect::<Vec<_>>(), [dropped, kept]);
    assert_eq!(live(&f, x), [dropped, kept]);
    assert_eq!(live(&f, x + 1), [kept], "an argument used after the call is live at both");
    assert_eq!(across(&f, x + 1), [kept]);
    assert_eq!(live(&f, x + 2), [kept, result]);
}

#[test]
fn what_a_loop_reads_in_its_next_round_is_live_at_its_end() {
    let mut f = Function::builder("f");
    let (list, used_once) = (f.reference_parameter(), f.reference_parameter());
    let head = f.reference_slot();
    let before = f.check(used_once);
    let top = f.here();
    let end = f.label();
    let test = f.jump_if_zero(list, end);
    let read = f.first(head, list);
    let x = f.foreign(None, 0, &[head]);
    let step = f.second(list, list);
    let back = f.jump(top);
    f.place(end);
    let last = f.leave();
    let f = verified(f);
    assert_eq!(live(&f, before), [list, used_once]);
    assert_eq!(live(&f, test), [list]);
    assert_eq!(live(&f, read), [list]);
    assert_eq!(live(&f, x), [list, head]);
    assert_eq!(live(&f, x + 1), [list]);
    assert_eq!(live(&f, step), [list]);
    assert_eq!(across(&f, step), [], "it is read, then overwritten");
    assert_eq!(live(&f, back), [list], "only the way back to the top makes it live");
    assert_eq!(live(&f, last), []);
}

#[test]
fn a_value_used_far_ahead_is_live_all_round_a_nest_of_loops() {
    let mut f = Function::builder("f");
    let (early, late) = (f.reference_parameter(), f.reference_parameter());
    let n = f.integer_slot();
    let outer = f.here();
    let check = f.check(early);
    let inner = f.here();
    let poll = f.poll();
    f.jump_if_zero(n, inner);
    f.jump_if_zero(n, outer);
    let end = f.give_back(late);
    let f = verified(f);
    assert_eq!(live(&f, check), [early, late]);
    assert_eq!(live(&f, poll), [early, late]);
    assert_eq!(live(&f, end), [late]);
}

#[test]
fn a_value_is_live_before_a_branch_if_either_arm_reads_it() {
    let mut f = Function::builder("f");
    let (a, b, both) = (f.reference_parameter(), f.reference_parameter(), f.reference_parameter());
    let test = f.integer_parameter();
    let (zero, join) = (f.label(), f.label());
    let branch = f.jump_if_zero(test, zero);
    let read_a = f.pair(both, a, both);
    f.jump(join);
    f.place(zero);
    let read_b = f.copy(both, b);
    f.place(join);
    let end = f.give_back(both);
    let f = verified(f);
    assert_eq!(live(&f, branch), [a, b, both]);
    assert_eq!(live(&f, read_a), [a, both]);
    assert_eq!(live(&f, read_b), [b], "a slot about to be overwritten is dead");
    assert_eq!(live(&f, end), [both]);
}

#[test]
fn across_a_managed_call_neither_the_result_nor_a_last_argument_is_live() {
    let mut callee = Function::builder("callee");
    let (p, _) = (callee.reference_parameter(), callee.integer_parameter());
    callee.give_back(p);
    let mut f = Function::builder("f");
    let (last, again) = (f.reference_parameter(), f.reference_parameter());
    let (n, dst) = (f.integer_slot(), f.reference_slot());
    let first = f.call(Some(dst), 0, &[last, n]);
    let second = f.call(Some(again), 0, &[again, n]);
    f.pair(dst, dst, again);
    f.give_back(dst);
    let program = Program::new(vec![callee.finish(), f.finish()]).unwrap();
    assert_eq!((program.find("f"), program.function(2)), (Some(1), None));
    let f = program.function(1).unwrap();
    assert_eq!(live(f, first), [last, again]);
    assert_eq!(across(f, first), [again]);
    assert_eq!(live(f, second), [again, dst]);
    assert_eq!(across(f, second), [dst], "an argument the result overwrites is dead during the call");
}

#[test]
fn integers_are_never_live_references_and_many_slots_are_told_apart() {
    let mut f = Function::builder("f");
    let slots: Vec<Slot> =
        (0..300).map(|i| if i % 2 == 0 { f.reference_slot() } else { f.integer_slot() }).collect();
    let x = f.foreign(None, 0, &slots);
    f.foreign(None, 0, &[slots[64], slots[65], slots[298]]);
    f.leave();
    let f = verified(f);
    assert_eq!(live(&f, x), slots.iter().copied().step_by(2).collect::<Vec<_>>());
    assert_eq!(live(&f, x + 1), [slots[64], slots[298]]);
}

#[test]
fn code_that_is_never_reached_is_analysed_too() {
    let mut f = Function::builder("f");
    let r = f.reference_parameter();
    f.leave();
    let lost = f.check(r);
    f.leave();
    assert_eq!(live(&verified(f), lost), [r]);
}

#[test]
fn a_function_that_was_not_verified_is_analysed_without_a_panic() {
    let code = vec![
        Instruction::Check { reference: Slot(9) },
        Instruction::Null { dst: Slot(700) },
        Instruction::Jump { target: 77 },
        Instruction::Check { reference: Slot(0) },
    ];
    let f = Function { name: "f".into(), slots: vec![SlotKind::Reference], parameters: 4, code };
    assert_eq!((live(&f, 0), live(&f, 3)), (vec![], vec![Slot(0)]));
}

#[test]
fn the_verifier_names_the_function_and_the_pc() {
    let mut f = Function::builder("sum");
    f.poll();
    f.check(Slot(4));
    f.leave();
    let error = Program::new(vec![f.finish()]).unwrap_err();
    assert_eq!(error.to_string(), "function `sum`, pc 1: there is no slot s4");
}

#[test]
fn a_slot_of_the_wrong_kind_is_refused() {
    use SlotKind::{Integer, Reference};
    let writers: [(Writer, SlotKind); 9] = [
        (|f, r, _| f.integer(r, 1), Integer),
        (|f, _, i| f.bytes(i, b""), Reference),
        (|f, r, i| f.pair(r, r, i), Reference),
        (|f, r, i| f.first(r, i), Reference),
        (|f, r, i| f.copy(r, i), Reference),
        (|f, r, i| f.copy(i, r), Integer),
        (|f, _, i| f.null(i), Reference),
        (|f, r, i| f.add(i, i, r), Integer),
        (|f, _, i| f.check(i), Reference),
    ];
    for (write, expected) in writers {
        let mut f = Function::builder("f");
        let (r, i) = (f.reference_slot(), f.integer_slot());
        f.poll();
        write(&mut f, r, i);
        f.leave();
        let slot = if expected == Integer { r } else { i };
        assert_eq!(fault(f), (1, Fault::WrongKind { slot, expected }));
    }
}

#[test]
fn a_foreign_call_in_pieces_is_refused() {
    let enter = || Instruction::EnterForeign { function: 0, arguments: vec![] };
    let mut f = Function::builder("f");
    f.push(enter());
    f.leave();
    assert_eq!(fault(f), (0, Fault::EnterAlone));

    let mut f = Function::builder("f");
    f.push(Instruction::InForeign { dst: None });
    f.leave();
    assert_eq!(fault(f), (0, Fault::InAlone));

    let mut f = Function::builder("f");
    f.push(enter());
    let inside = f.here();
    f.push(Instruction::InForeign { dst: None });
    f.jump(inside);
    assert_eq!(fault(f), (2, Fault::JumpIntoForeign { target: 1 }));
}

#[test]
fn code_that_goes_on_past_its_end_is_refused() {
    assert_eq!(fault(Function::builder("f")), (0, Fault::FallsOffEnd));
    let mut f = Function::builder("f");
    f.poll();
    f.foreign(None, 0, &[]);
    assert_eq!(fault(f), (2, Fault::FallsOffEnd));
    let mut f = Function::builder("f");
    let (n, top) = (f.integer_slot(), f.here());
    f.jump_if_zero(n, top);
    assert_eq!(fault(f), (0, Fault::FallsOffEnd));
    let mut f = Function::builder("f");
    f.push(Instruction::Jump { target: 1 });
    assert_eq!(fault(f), (0, Fault::NoSuchTarget { target: 1 }));
}

#[test]
fn calls_and_returns_that_do_not_fit_are_refused() {
    let with = |write: Writer| {
        let mut f = Function::builder("f");
        let (r, n) = (f.reference_parameter(), f.integer_slot());
        write(&mut f, r, n);
        f.leave();
        fault(f)
    };
    assert_eq!(with(|f, r, _| f.call(None, 1, &[r])), (0, Fault::NoSuchFunction { function: 1 }));
    assert_eq!(with(|f, _, _| f.call(None, 0, &[])), (0, Fault::ArgumentCount { expected: 1, given: 0 }));
    let wrong = Fault::WrongKind { slot: Slot(1), expected: SlotKind::Reference };
    assert_eq!(with(|f, _, n| f.call(None, 0, &[n])), (0, wrong));
    assert_eq!(with(|f, r, n| f.call(Some(n), 0, &[r])), (0, Fault::NoResult { dst: Slot(1) }));
    assert_eq!(with(|f, r, _| f.give_back(r)), (1, Fault::ResultsDiffer));
    let f = Function { name: "f".into(), slots: vec![], parameters: 1, code: vec![] };
    let error = Program::new(vec![f]).unwrap_err();
    assert_eq!(error.fault, Fault::SlotCount { parameters: 1, slots: 0 });
}

#[test]
#[should_panic(expected = "the jump at pc 0 leads to a label without a place")]
fn a_label_without_a_place_is_refused() {
    let mut f = Function::builder("f");
    let label = f.label();
    f.jump(label);
    let _function = f.finish();
}
