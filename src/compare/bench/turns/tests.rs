use std::cell::RefCell;

use super::*;

const PLAN: Plan = Plan {
    method: "",
    figures: &[
        ("one", Unit::Milliseconds, Better::Less),
        ("two", Unit::Milliseconds, Better::Less),
    ],
    warms_up: true,
    contender: |_, _| Err(Trouble::Other("not asked here".into())),
};

/// Says when it had its turn; what it measures is the number of that turn.
struct Fake<'a> {
    name: &'static str,
    told: &'a RefCell<Vec<&'static str>>,
    /// The turns that fail, by their numbers.
    fails: &'static [usize],
    turns: usize,
}

impl Contender for Fake<'_> {
    fn turn(&mut self) -> Result<Samples, Trouble> {
        self.told.borrow_mut().push(self.name);
        let turn = self.turns;
        self.turns += 1;
        match self.fails.contains(&turn) {
            true => Err(Trouble::Other(format!("turn {turn}"))),
            false => Ok(vec![Some(turn as f64), None]),
        }
    }
}

fn who(name: &str) -> Who {
    Who {
        name: name.into(),
        kind: Kind::Other,
        program: "/none".into(),
    }
}

/// What comes of four runs of `a` and `b`, which fail at these turns; and the order of all turns.
fn measured(
    a: &'static [usize],
    b: &'static [usize],
) -> (Vec<Participant>, Vec<Figure>, Vec<&'static str>) {
    let told = RefCell::new(Vec::new());
    let both = [who("a"), who("b")];
    let fake = |name, fails| -> Made<'_> {
        let told = &told;
        Ok(Box::new(Fake {
            name,
            told,
            fails,
            turns: 0,
        }))
    };
    let entrants = vec![
        Entrant::new(&both[0], &PLAN, fake("a", a)),
        Entrant::new(&both[1], &PLAN, fake("b", b)),
    ];
    let (participants, figures) = rounds(entrants, &PLAN, 4, &mut |_, _, _| {}).expect("measured");
    (participants, figures, told.into_inner())
}

#[test]
fn turns_are_interleaved_reversed_and_the_first_does_not_count() {
    let (_, figures, told) = measured(&[], &[]);
    assert_eq!(told.concat(), "abbaabbaab");
    assert_eq!(figures[0].cells[0].samples, [1.0, 2.0, 3.0, 4.0]);
    let ratio = figures[0].cells[1].ratio.expect("a ratio to the first");
    assert_eq!(ratio.ratio, 1.0);
}

#[test]
fn a_figure_that_one_does_not_have_says_so() {
    let (_, figures, _) = measured(&[], &[]);
    let cell = &figures[1].cells[0];
    assert!(cell.samples.is_empty() && cell.summary.is_none());
    assert_eq!(cell.note.as_deref(), Some("not measured of it"));
}

#[test]
fn whoever_fails_at_first_is_left_out_with_the_reason() {
    let (participants, figures, told) = measured(&[], &[0]);
    assert_eq!(participants[1].left_out.as_deref(), Some("turn 0"));
    assert_eq!(participants[0].left_out, None);
    assert_eq!(figures[0].cells.len(), 1);
    assert_eq!(told.concat(), "abaaaa", "it has no more turns");
}

#[test]
fn whoever_fails_later_has_a_note() {
    let (participants, figures, _) = measured(&[], &[2, 3]);
    assert_eq!(participants[1].left_out, None);
    let cell = &figures[0].cells[1];
    assert_eq!(cell.samples, [1.0, 4.0]);
    assert_eq!(cell.note.as_deref(), Some("2 of 4 turns failed: turn 3"));
}

#[test]
fn whoever_cannot_begin_says_why() {
    let both = [who("a")];
    let none = Err(Trouble::Other("it has no such thing".into()));
    let entrants = vec![Entrant::new(&both[0], &PLAN, none)];
    let (participants, figures) = rounds(entrants, &PLAN, 2, &mut |_, _, _| {}).expect("nothing");
    assert_eq!(
        participants[0].left_out.as_deref(),
        Some("it has no such thing")
    );
    assert!(figures.iter().all(|figure| figure.cells.is_empty()));
}
