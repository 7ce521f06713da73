//! Compiles a list of system calls to a seccomp filter, for the build script.
//!
//! Whenever a thread installs a filter, the kernel translates its instructions to machine code and tries it
//! with every number of a system call (`seccomp_cache_prepare` in kernel/seccomp.c). Both take most of the
//! time of an installation, so the filter has few instructions and finds out soon about most numbers.

use std::collections::BTreeMap;
use std::ops::Range;

use libc::sock_filter;

use super::filters::{Call, OWN_PROCESS, Only};

const X86_64: u32 = 0xc000_003e;
/// More than the numbers that the kernel tries: those of Linux 6.12.
const CALLS: u32 = 467;
/// An instruction takes as long to translate as so many take to be tried.
const TRANSLATED: u32 = 47;

/// Where an instruction is: how many there are from it to the program's end. Jumps only lead forward, so a
/// program is made from its end.
type Label = usize;

#[derive(Default)]
struct Program {
    backwards: Vec<sock_filter>,
}

/// Successive numbers with the same result, and where that is returned or depends on arguments.
struct Run {
    numbers: Range<u32>,
    to: Label,
}

/// How to find the run of a number among several runs.
#[derive(Clone, Copy)]
enum Step {
    /// There is only one.
    Found,
    /// By whether the number is in this run or a later one.
    AtLeast(usize),
    /// By comparing it with each run of one number; the others have the same result.
    EachOne,
}

/// The filter that allows `calls`, has any other one trapped, and ends a process of another architecture.
pub fn compile<'a>(calls: impl Iterator<Item = &'a Call>) -> Vec<sock_filter> {
    let mut ways = BTreeMap::<u32, Vec<&[Only]>>::new();
    for call in calls {
        ways.entry(call.number as u32).or_default().push(call.only);
    }
    let mut program = Program::default();
    let kill = program.end(libc::SECCOMP_RET_KILL_PROCESS);
    let trap = program.end(libc::SECCOMP_RET_TRAP);
    let allow = program.end(libc::SECCOMP_RET_ALLOW);
    let results: BTreeMap<u32, Label> = ways
        .iter()
        .map(|(number, ways)| (*number, program.any(ways, allow, trap)))
        .collect();
    let runs = runs(&results, trap);
    let steps = steps(&runs);
    program.find(&runs, &steps, 0..runs.len());
    program.load(0); // the number
    let of_this_architecture = program.backwards.len();
    program.jump(libc::BPF_JEQ, X86_64, of_this_architecture, kill);
    program.load(4); // the architecture
    program.backwards.reverse();
    program.backwards
}

impl Program {
    fn push(&mut self, code: u32, k: u32, [jt, jf]: [u8; 2]) -> Label {
        let code = code as u16;
        self.backwards.push(sock_filter { code, jt, jf, k });
        self.backwards.len()
    }

    fn end(&mut self, result: u32) -> Label {
        self.push(libc::BPF_RET | libc::BPF_K, result, [0, 0])
    }

    /// Load a word of `struct seccomp_data`, for the instruction that was added last.
    fn load(&mut self, offset: u32) -> Label {
        let code = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
        self.push(code, offset, [0, 0])
    }

    fn jump(&mut self, comparison: u32, k: u32, holds: Label, fails: Label) -> Label {
        let here = self.backwards.len();
        let over = [holds, fails].map(|to| u8::try_from(here - to).expect("a short program"));
        self.push(libc::BPF_JMP | comparison | libc::BPF_K, k, over)
    }

    /// Go to `allow` if all arguments are as one of `ways` says.
    fn any(&mut self, ways: &[&[Only]], allow: Label, trap: Label) -> Label {
        ways.iter().rfold(trap, |otherwise, way| {
            way.iter()
                .rfold(allow, |holds, only| self.one(only, holds, otherwise))
        })
    }

    fn one(&mut self, only: &Only, holds: Label, fails: Label) -> Label {
        let argument = match only {
            Only::OneOf(argument, values) => {
                values.iter().rfold(fails, |otherwise, (_, value)| {
                    self.jump(libc::BPF_JEQ, *value, holds, otherwise)
                });
                argument
            }
            Only::Lacks(argument, _, bits) => {
                self.jump(libc::BPF_JSET, *bits, fails, holds);
                argument
            }
            Only::OwnProcess(argument) => {
                self.jump(libc::BPF_JEQ, OWN_PROCESS, holds, fails);
                argument
            }
        };
        self.load(16 + 8 * u32::from(*argument)) // its low half
    }

    /// Find the run of the loaded number among those of this `range`.
    fn find(&mut self, runs: &[Run], steps: &[Vec<Step>], range: Range<usize>) -> Label {
        match steps[range.start][range.end] {
            Step::Found => runs[range.start].to,
            Step::AtLeast(middle) => {
                let high = self.find(runs, steps, middle..range.end);
                let low = self.find(runs, steps, range.start..middle);
                self.jump(libc::BPF_JGE, runs[middle].numbers.start, high, low)
            }
            Step::EachOne => {
                let (single, others) = singles(&runs[range]);
                single.iter().rfold(others[0].to, |otherwise, run| {
                    self.jump(libc::BPF_JEQ, run.numbers.start, run.to, otherwise)
                })
            }
        }
    }
}

fn runs(results: &BTreeMap<u32, Label>, unlisted: Label) -> Vec<Run> {
    let mut runs = Vec::<Run>::new();
    for number in 0..CALLS {
        let to = results.get(&number).copied().unwrap_or(unlisted);
        match runs.last_mut() {
            Some(last) if last.to == to => last.numbers.end = number + 1,
            _ => runs.push(Run {
                numbers: number..number + 1,
                to,
            }),
        }
    }
    runs
}

/// The runs of one number, and the others.
fn singles(runs: &[Run]) -> (Vec<&Run>, Vec<&Run>) {
    runs.iter().partition(|run| run.numbers.len() == 1)
}

/// For the runs from each one up to each other one, which step costs least.
fn steps(runs: &[Run]) -> Vec<Vec<Step>> {
    let count = runs.len();
    let mut costs = vec![vec![0; count + 1]; count];
    let mut steps = vec![vec![Step::Found; count + 1]; count];
    for length in 2..=count {
        for start in 0..=count - length {
            let end = start + length;
            let all = runs[end - 1].numbers.end - runs[start].numbers.start;
            let split = (start + 1..end).map(|middle| {
                let parts = costs[start][middle] + costs[middle][end];
                (TRANSLATED + all + parts, Step::AtLeast(middle))
            });
            let each_one = each_one(&runs[start..end]).map(|cost| (cost, Step::EachOne));
            let best = split.chain(each_one).min_by_key(|(cost, _)| *cost);
            (costs[start][end], steps[start][end]) = best.expect("there is a middle");
        }
    }
    steps
}

/// What [`Step::EachOne`] costs, where it is possible.
fn each_one(runs: &[Run]) -> Option<u32> {
    let (single, others) = singles(runs);
    if others.iter().any(|other| other.to != others[0].to) || others.is_empty() {
        return None;
    }
    let comparisons = single.len() as u32;
    let other_numbers: u32 = others.iter().map(|run| run.numbers.len() as u32).sum();
    let tried = comparisons * other_numbers + comparisons * (comparisons + 1) / 2;
    Some(TRANSLATED * comparisons + tried)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
        SeccompRule, TargetArch,
    };

    use super::*;
    use crate::sandbox::filters::{EVERY, LISTS};

    /// What a filter says of a call whose arguments are all `argument`.
    fn run(filter: &[(u16, u8, u8, u32)], architecture: u32, number: u32, argument: u64) -> u32 {
        let (mut at, mut value) = (0, 0);
        loop {
            let (code, jt, jf, k) = filter[at];
            at += 1;
            let holds = match u32::from(code) {
                0x20 => {
                    value = match k {
                        0 => number,
                        4 => architecture,
                        _ if k % 8 == 0 => argument as u32,
                        _ => (argument >> 32) as u32,
                    };
                    continue;
                }
                0x54 => {
                    value &= k;
                    continue;
                }
                0x05 => {
                    at += k as usize;
                    continue;
                }
                0x06 => return k,
                0x15 => value == k,
                0x35 => value >= k,
                0x45 => value & k != 0,
                other => panic!("instruction {other:#x}"),
            };
            at += usize::from(if holds { jt } else { jf });
        }
    }

    fn conditions(only: &Only) -> Vec<SeccompCondition> {
        let is = |argument: u8, op, value: u32| {
            SeccompCondition::new(argument, SeccompCmpArgLen::Dword, op, value.into()).unwrap()
        };
        match only {
            Only::OneOf(argument, values) => {
                let equal = |(_, value): &(_, u32)| is(*argument, SeccompCmpOp::Eq, *value);
                values.iter().map(equal).collect()
            }
            Only::Lacks(argument, _, bits) => {
                vec![is(*argument, SeccompCmpOp::MaskedEq(u64::from(*bits)), 0)]
            }
            Only::OwnProcess(argument) => vec![is(*argument, SeccompCmpOp::Eq, OWN_PROCESS)],
        }
    }

    /// The filter as seccompiler makes it. No call has two arguments that matter.
    fn reference(calls: &[&Call]) -> BpfProgram {
        let mut rules = BTreeMap::<i64, Vec<SeccompRule>>::new();
        for call in calls {
            assert!(call.only.len() < 2);
            let alternatives = call.only.iter().flat_map(conditions);
            rules
                .entry(call.number)
                .or_default()
                .extend(alternatives.map(|one| SeccompRule::new(vec![one]).unwrap()));
        }
        let (trap, allow) = (SeccompAction::Trap, SeccompAction::Allow);
        let filter = SeccompFilter::new(rules, trap, allow, TargetArch::x86_64).unwrap();
        filter.try_into().unwrap()
    }

    #[test]
    fn each_filter_is_the_one_of_seccompiler_in_fewer_instructions() {
        for list in &LISTS {
            let calls: Vec<&Call> = [EVERY]
                .iter()
                .chain(list.calls)
                .copied()
                .flatten()
                .collect();
            let ours: Vec<_> = compile(calls.iter().copied())
                .iter()
                .map(|it| (it.code, it.jt, it.jf, it.k))
                .collect();
            let theirs: Vec<_> = reference(&calls)
                .iter()
                .map(|it| (it.code, it.jt, it.jf, it.k))
                .collect();
            assert!(ours.len() < theirs.len() / 2, "{}", list.thread);

            let mut arguments = BTreeSet::from([0, 1, 4, 7, u64::MAX, u64::from(OWN_PROCESS)]);
            for only in calls.iter().flat_map(|call| call.only) {
                if let Only::OneOf(_, values) = only {
                    arguments.extend(values.iter().map(|(_, value)| u64::from(*value)));
                }
            }
            let numbers = (0..2 * CALLS).chain([0x4000_0000, 0x4000_0001, u32::MAX]);
            for (number, argument) in
                numbers.flat_map(|number| arguments.iter().map(move |it| (number, *it)))
            {
                for argument in [
                    argument,
                    argument + u64::from(argument < 1 << 32) * (7 << 32),
                ] {
                    let [ours, theirs] =
                        [&ours, &theirs].map(|it| run(it, X86_64, number, argument));
                    assert_eq!(ours, theirs, "{}: {number}({argument:#x})", list.thread);
                }
            }
            assert_eq!(
                run(&ours, 0x4000_0003, 0, 0),
                libc::SECCOMP_RET_KILL_PROCESS
            );
        }
    }
}
