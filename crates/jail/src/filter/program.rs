//! From rules to a program of the kernel's filter machine (bpf(4), linux/filter.h).
//!
//! Its shape follows what the kernel does with it: runs it at each call, and once for each number
//! there is when it is installed, to learn which calls need no run. So the number is found by
//! halving, not by comparing with one after the other, and calls beside each other that have the
//! same verdict are one interval. For a monitor's policy that is a third of the time.

use std::collections::BTreeMap;

use super::{Condition, Expected, FilterError, Refusal, Rule, Verdict};

pub(super) type Instruction = libc::sock_filter;

// The machine has one register, and these instructions of it are enough.
const LOAD: u16 = 0x20; // of struct seccomp_data, at k
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;

// Where struct seccomp_data has what (linux/seccomp.h). Arguments are of 64 bits.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// What this program is compiled for (linux/audit.h). Calls of another kind of program, which
/// the processor may run as well, have other numbers.
#[cfg(target_arch = "x86_64")]
const OURS: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const OURS: u32 = 0xC000_00B7;

pub(super) fn compile(rules: &[Rule], refusal: Refusal) -> Result<Vec<Instruction>, FilterError> {
    let refused = match refusal {
        Refusal::Trap => libc::SECCOMP_RET_TRAP,
        Refusal::Fail(errno) => libc::SECCOMP_RET_ERRNO | u32::from(errno),
    };
    let mut program = vec![
        instruction(LOAD, ARCHITECTURE),
        jump(JUMP_IF_EQUAL, OURS, 1, 0)?,
        instruction(RETURN, libc::SECCOMP_RET_KILL_PROCESS),
        instruction(LOAD, NUMBER),
    ];
    program.extend(search(&intervals(rules, refused), refused)?);
    Ok(program)
}

/// What is to be done with calls from a number on, up to the next interval.
#[derive(Debug)]
struct Interval<'a> {
    from: u32,
    outcome: Outcome<'a>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome<'a> {
    Return(u32),
    /// Allowed where all conditions of one of these hold.
    Check(Vec<&'a [Condition]>),
}

/// All numbers there are, in order.
fn intervals(rules: &[Rule], refused: u32) -> Vec<Interval<'_>> {
    let mut intervals = vec![Interval { from: 0, outcome: Outcome::Return(refused) }];
    for (number, outcome) in outcomes(rules) {
        begin(&mut intervals, number, outcome);
        begin(&mut intervals, number + 1, Outcome::Return(refused));
    }
    intervals
}

fn begin<'a>(intervals: &mut Vec<Interval<'a>>, from: u32, outcome: Outcome<'a>) {
    // That the calls behind the last one are refused does not hold for this, the very next.
    if intervals.last().is_some_and(|last| last.from == from) {
        intervals.pop();
    }
    if intervals.last().is_none_or(|last| last.outcome != outcome) {
        intervals.push(Interval { from, outcome });
    }
}

fn outcomes(rules: &[Rule]) -> BTreeMap<u32, Outcome<'_>> {
    let mut outcomes = BTreeMap::new();
    for rule in rules {
        let outcome = outcomes.entry(rule.call).or_insert_with(|| Outcome::Check(Vec::new()));
        match (&rule.verdict, outcome) {
            (Verdict::Failing(errno), outcome) => {
                *outcome = Outcome::Return(libc::SECCOMP_RET_ERRNO | u32::from(*errno));
            }
            (Verdict::Allowed, outcome @ Outcome::Check(_)) => {
                *outcome = Outcome::Return(libc::SECCOMP_RET_ALLOW);
            }
            (Verdict::AllowedWhere(conditions), Outcome::Check(any)) => any.push(conditions),
            // It is settled.
            (_, Outcome::Return(_)) => {}
        }
    }
    outcomes
}

/// Finds the interval of the number in the register, and does what is to be done there.
fn search(intervals: &[Interval<'_>], refused: u32) -> Result<Vec<Instruction>, FilterError> {
    let (lower, upper) = intervals.split_at(intervals.len() / 2);
    let Some(first) = upper.first() else { return Ok(Vec::new()) };
    if lower.is_empty() {
        return settle(&first.outcome, refused);
    }
    let (from, lower, upper) = (first.from, search(lower, refused)?, search(upper, refused)?);
    let mut program = match u8::try_from(lower.len()) {
        Ok(_) => vec![jump(JUMP_IF_AT_LEAST, from, lower.len(), 0)?],
        // Beyond 255 there is only the unconditional jump.
        Err(_) => {
            let length = u32::try_from(lower.len()).map_err(|_| FilterError::TooLong)?;
            vec![jump(JUMP_IF_AT_LEAST, from, 0, 1)?, instruction(JUMP, length)]
        }
    };
    program.extend(lower);
    program.extend(upper);
    Ok(program)
}

fn settle(outcome: &Outcome<'_>, refused: u32) -> Result<Vec<Instruction>, FilterError> {
    let mut program = Vec::new();
    let last = match outcome {
        Outcome::Return(value) => *value,
        Outcome::Check(any) => {
            for conditions in any {
                program.extend(check(conditions)?);
            }
            refused
        }
    };
    program.push(instruction(RETURN, last));
    Ok(program)
}

/// Returns where all hold, and goes on behind itself where one does not.
fn check(conditions: &[Condition]) -> Result<Vec<Instruction>, FilterError> {
    let mut program = vec![instruction(RETURN, libc::SECCOMP_RET_ALLOW)];
    for condition in conditions.iter().rev() {
        let mut with_it = test(condition, program.len())?;
        with_it.append(&mut program);
        program = with_it;
    }
    Ok(program)
}

/// Goes on behind itself where it holds, and `otherwise` further where it does not.
fn test(condition: &Condition, otherwise: usize) -> Result<Vec<Instruction>, FilterError> {
    let lower = instruction(LOAD, ARGUMENTS + 8 * u32::from(condition.argument));
    let upper = instruction(LOAD, lower.k + 4);
    Ok(match &condition.expected {
        Expected::OneOf(values) => {
            let mut program = vec![lower];
            for (index, value) in values.iter().enumerate() {
                let left = values.len() - 1 - index;
                let no = if left == 0 { otherwise } else { 0 };
                program.push(jump(JUMP_IF_EQUAL, *value, left, no)?);
            }
            if values.is_empty() {
                let length = u32::try_from(otherwise).map_err(|_| FilterError::TooLong)?;
                program.push(instruction(JUMP, length));
            }
            program
        }
        Expected::Bits { mask, value } => {
            vec![lower, instruction(AND, *mask), jump(JUMP_IF_EQUAL, *value, 0, otherwise)?]
        }
        Expected::Null => vec![
            lower,
            jump(JUMP_IF_EQUAL, 0, 0, otherwise + 2)?,
            upper,
            jump(JUMP_IF_EQUAL, 0, 0, otherwise)?,
        ],
        Expected::ThisProcess => {
            vec![lower, jump(JUMP_IF_EQUAL, std::process::id(), 0, otherwise)?]
        }
    })
}

fn instruction(code: u16, k: u32) -> Instruction {
    Instruction { code, jt: 0, jf: 0, k }
}

/// Skips so many instructions where it holds, and so many where it does not.
fn jump(code: u16, k: u32, yes: usize, no: usize) -> Result<Instruction, FilterError> {
    let distance = |length: usize| u8::try_from(length).map_err(|_| FilterError::TooLong);
    Ok(Instruction { code, jt: distance(yes)?, jf: distance(no)?, k })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Argument;
    use super::*;
    use crate::policy;

    /// A call as a filter sees it: `struct seccomp_data`.
    #[derive(Debug, Clone, Copy)]
    struct Call {
        number: u32,
        architecture: u32,
        arguments: [u64; 6],
    }

    impl Call {
        fn of(number: u32, arguments: [u64; 6]) -> Self {
            Self { number, architecture: OURS, arguments }
        }

        fn word(&self, offset: u32) -> u32 {
            let word = |argument: u64, upper: bool| {
                let bytes = argument.to_le_bytes();
                let half = if upper { &bytes[4..] } else { &bytes[..4] };
                u32::from_le_bytes(half.try_into().unwrap())
            };
            match offset {
                NUMBER => self.number,
                ARCHITECTURE => self.architecture,
                _ => {
                    let place = offset - ARGUMENTS;
                    word(self.arguments[place as usize / 8], place % 8 == 4)
                }
            }
        }
    }

    /// The machine.
    fn run(program: &[Instruction], call: &Call) -> u32 {
        let (mut at, mut register) = (0, 0_u32);
        loop {
            let Instruction { code, jt, jf, k } = program[at];
            at += 1;
            let either = |holds: bool| usize::from(if holds { jt } else { jf });
            match code {
                LOAD => register = call.word(k),
                AND => register &= k,
                JUMP => at += k as usize,
                JUMP_IF_EQUAL => at += either(register == k),
                JUMP_IF_AT_LEAST => at += either(register >= k),
                RETURN => return k,
                other => panic!("no instruction {other:#x}"),
            }
        }
    }

    /// What rules mean, without a program.
    fn meaning(rules: &[Rule], refusal: Refusal, call: &Call) -> u32 {
        let of_it = || rules.iter().filter(|rule| rule.call == call.number);
        // Of two errors it is the later.
        if let Some(errno) = of_it().rev().find_map(|rule| match rule.verdict {
            Verdict::Failing(errno) => Some(errno),
            _ => None,
        }) {
            return libc::SECCOMP_RET_ERRNO | u32::from(errno);
        }
        let allowed = of_it().any(|rule| match &rule.verdict {
            Verdict::Allowed => true,
            Verdict::AllowedWhere(all) => all.iter().all(|condition| holds(condition, call)),
            Verdict::Failing(_) => false,
        });
        match (allowed, refusal) {
            (true, _) => libc::SECCOMP_RET_ALLOW,
            (false, Refusal::Trap) => libc::SECCOMP_RET_TRAP,
            (false, Refusal::Fail(errno)) => libc::SECCOMP_RET_ERRNO | u32::from(errno),
        }
    }

    fn holds(condition: &Condition, call: &Call) -> bool {
        let whole = call.arguments[usize::from(condition.argument)];
        let lower = u32::try_from(whole & u64::from(u32::MAX)).unwrap();
        match &condition.expected {
            Expected::OneOf(values) => values.contains(&lower),
            Expected::Bits { mask, value } => lower & mask == *value,
            Expected::Null => whole == 0,
            Expected::ThisProcess => lower == std::process::id(),
        }
    }

    fn conditions() -> impl Strategy<Value = Condition> {
        let expected = prop_oneof![
            prop::collection::vec(0..6_u32, 0..4).prop_map(Expected::OneOf),
            (0..8_u32, 0..8_u32).prop_map(|(mask, value)| Expected::Bits { mask, value }),
            Just(Expected::Null),
        ];
        (0..6_u8, expected).prop_map(|(argument, expected)| Condition { argument, expected })
    }

    fn rules() -> impl Strategy<Value = Vec<Rule>> {
        let verdict = prop_oneof![
            Just(Verdict::Allowed),
            prop::collection::vec(conditions(), 0..4).prop_map(Verdict::AllowedWhere),
            (1..100_u16).prop_map(Verdict::Failing),
        ];
        let rule = (0..40_u32, verdict).prop_map(|(call, verdict)| Rule { call, verdict });
        prop::collection::vec(rule, 0..60)
    }

    fn calls() -> impl Strategy<Value = Call> {
        let argument = prop_oneof![0..8_u64, Just(1 << 32), any::<u64>()];
        (prop_oneof![0..45_u32, any::<u32>()], prop::array::uniform6(argument))
            .prop_map(|(number, arguments)| Call::of(number, arguments))
    }

    proptest! {
        #[test]
        fn a_program_does_what_its_rules_mean(
            rules in rules(),
            calls in prop::collection::vec(calls(), 1..50),
        ) {
            let program = compile(&rules, Refusal::Trap).unwrap();
            for call in calls {
                let expected = meaning(&rules, Refusal::Trap, &call);
                prop_assert_eq!(run(&program, &call), expected, "{:?}", call);
            }
        }
    }

    #[test]
    fn the_policies_do_what_they_say_for_every_number() {
        for rules in [policy::monitor(), policy::keeper()] {
            let program = compile(&rules, Refusal::Fail(1)).unwrap();
            let pid = std::process::id().into();
            for number in (0..2048).chain([0x4000_0000, 0x4000_0001, u32::MAX]) {
                for argument in [0, 1, 2, 0xAE80, pid, 0x5412, u64::MAX, 1 << 32] {
                    let call = Call::of(number, [argument; 6]);
                    let expected = meaning(&rules, Refusal::Fail(1), &call);
                    assert_eq!(run(&program, &call), expected, "{call:?}");
                }
            }
        }
    }

    #[test]
    fn another_architecture_s_calls_kill() {
        let program = compile(&[Rule::call(libc::SYS_read)], Refusal::Trap).unwrap();
        let call = Call { architecture: 0x4000_0003, ..Call::of(0, [0; 6]) };
        assert_eq!(run(&program, &call), libc::SECCOMP_RET_KILL_PROCESS);
    }

    #[test]
    fn the_upper_half_of_a_flag_s_register_changes_nothing() {
        let rules = [Rule::when(libc::SYS_ioctl, [Argument::B.is(0xAE80)])];
        let program = compile(&rules, Refusal::Trap).unwrap();
        let call = |request| Call::of(16, [0, request, 0, 0, 0, 0]);
        assert_eq!(run(&program, &call(0xAE80)), libc::SECCOMP_RET_ALLOW);
        assert_eq!(run(&program, &call(0xAE80 | 1 << 32)), libc::SECCOMP_RET_ALLOW);
        assert_eq!(run(&program, &call(0xAE81)), libc::SECCOMP_RET_TRAP);
    }

    #[test]
    fn what_does_not_fit_a_jump_is_refused() {
        let values: Vec<u32> = (0..1000).collect();
        let rules = [Rule::when(libc::SYS_ioctl, [Argument::B.is_one_of(&values)])];
        assert!(matches!(compile(&rules, Refusal::Trap), Err(FilterError::TooLong)));
    }
}
