//! The validator is tested itself: defects planted into the records of good runs, each of which it must catch.

use std::collections::BTreeMap;

use boilerhouse_bridge::event::Resource;

use super::history;
use super::script::Trouble;
use super::truth::{Said, Truth, Type, burst};
use super::validator::{End, Record, Start, judge, walk};
use super::witness::{Heard, What};
use crate::support::dice::Dice;

/// Histories whose records are spoilt.
const HISTORIES: u64 = 40;
/// How often each defect must have been planted for the test to mean anything.
const LEAST: u64 = 20;

/// Where a message of a good record comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Burst,
    /// What was heard of this kind, by its place.
    Heard(Resource, usize),
}

/// A good record, taken apart.
struct Good<'a> {
    truth: &'a Truth,
    record: &'a Record,
    origins: Vec<Origin>,
}

impl Good<'_> {
    fn of<'a>(truth: &'a Truth, record: &'a Record) -> Option<Good<'a>> {
        let (Start::Now(at) | Start::Burst(at)) = record.start;
        let mut origins = Vec::new();
        if let Start::Burst(_) = record.start {
            let state = |kind: Resource| walk(truth, kind, &record.heard[kind as usize][..at[kind as usize]], 0);
            let (pods, claims) = (state(Resource::Instance).ok()?.0, state(Resource::Claim).ok()?.0);
            origins = vec![Origin::Burst; burst(&pods, &claims).len()];
        }
        let told = |kind: Resource| walk(truth, kind, &record.heard[kind as usize], at[kind as usize]);
        let mut told = [told(Resource::Instance).ok()?.1.into_iter(), told(Resource::Claim).ok()?.1.into_iter()];
        for said in &record.told[origins.len()..] {
            let kind = said.r#type.kind();
            let (nth, expected) = told[kind as usize].next()?;
            if expected != *said {
                return None;
            }
            origins.push(Origin::Heard(kind, nth));
        }
        Some(Good { truth, record, origins })
    }

    fn is_from_list(&self, nth: usize) -> bool {
        match self.origins[nth] {
            Origin::Heard(kind, at) => matches!(self.record.heard[kind as usize][at].what, What::List(_)),
            Origin::Burst => false,
        }
    }

    fn is_live(&self, nth: usize) -> bool {
        self.origins[nth] != Origin::Burst
    }

    /// One of the messages that fit, by chance.
    fn any(&self, dice: &mut Dice, fits: impl Fn(usize, &Said) -> bool) -> Option<usize> {
        let told = &self.record.told;
        let fitting: Vec<usize> = (0..told.len()).filter(|nth| fits(*nth, &told[*nth])).collect();
        if fitting.is_empty() { None } else { Some(*dice.pick(&fitting)) }
    }
}

fn deleted(said: &Said) -> bool {
    said.phase.as_deref() == Some("Deleted")
}

/// A defect: plants itself where it fits.
type Bug = fn(&Good<'_>, &mut Record, &mut Dice) -> Option<()>;

const BUGS: [(&str, Bug); 21] = [
    ("a message is skipped", |good, bad, dice| {
        bad.told.remove(good.any(dice, |_, _| true)?);
        Some(())
    }),
    ("a message is repeated", |good, bad, dice| {
        let nth = good.any(dice, |_, _| true)?;
        bad.told.insert(nth, good.record.told[nth].clone());
        Some(())
    }),
    ("a deletion that a list showed is not told", |good, bad, dice| {
        bad.told.remove(good.any(dice, |nth, said| good.is_from_list(nth) && deleted(said))?);
        Some(())
    }),
    ("an edge that a list showed is not told", |good, bad, dice| {
        bad.told.remove(good.any(dice, |nth, said| good.is_from_list(nth) && said.r#type != Type::State)?);
        Some(())
    }),
    ("a deletion that a list showed comes after what is new", |good, bad, dice| {
        let told = &good.record.told;
        let next = |nth: usize| nth + 1 < told.len() && good.origins[nth] == good.origins[nth + 1];
        let nth = good
            .any(dice, |nth, said| good.is_from_list(nth) && deleted(said) && next(nth) && !deleted(&told[nth + 1]))?;
        bad.told.swap(nth, nth + 1);
        Some(())
    }),
    ("a difference is told twice", |good, bad, dice| {
        let nth = good.any(dice, |nth, _| good.is_from_list(nth))?;
        let mut all = (0..good.origins.len()).filter(|other| good.origins[*other] == good.origins[nth]);
        let again: Vec<Said> = all.clone().map(|other| good.record.told[other].clone()).collect();
        let end = all.next_back()? + 1;
        bad.told.splice(end..end, again);
        Some(())
    }),
    ("it is told of another life", |good, bad, dice| {
        let other = |said: &Said| {
            let branch = good.truth.branch(good.truth.epochs.len() - 1, Resource::Instance);
            let faces = branch.iter().filter_map(|version| version.after.as_ref());
            let mut lives = faces.filter(|face| face.name == said.name).map(|face| (&face.uid, face.says(Type::State)));
            let mine = lives.clone().find(|(_, says)| says == said)?.0;
            lives.find(|(uid, _)| *uid != mine).map(|(_, says)| says)
        };
        let nth = good.any(dice, |_, said| other(said).is_some())?;
        bad.told[nth] = other(&good.record.told[nth])?;
        Some(())
    }),
    ("an edge comes again later", |good, bad, dice| {
        let nth = good.any(dice, |_, said| said.r#type != Type::State)?;
        let later = nth + 1 + usize::try_from(dice.roll((bad.told.len() - nth) as u64)).ok()?;
        bad.told.insert(later, good.record.told[nth].clone());
        Some(())
    }),
    ("an edge comes before its state", |good, bad, dice| {
        let nth = good.any(dice, |nth, said| nth > 0 && said.r#type == Type::Ready)?;
        bad.told.swap(nth - 1, nth);
        Some(())
    }),
    ("a released claim is released again when it is deleted", |good, bad, dice| {
        let nth = good.any(dice, |_, said| said.r#type == Type::Released)?;
        bad.told.push(good.record.told[nth].clone());
        Some(())
    }),
    ("the burst comes after the first transition", |good, bad, _| {
        let first = good.origins.iter().position(|origin| *origin != Origin::Burst).filter(|first| *first > 0)?;
        let live = bad.told.remove(first);
        (live != bad.told[0]).then(|| bad.told.insert(0, live))
    }),
    ("the burst tells of a released claim", |good, bad, dice| {
        let nth = good.any(dice, |nth, _| !good.is_live(nth))?;
        let released = Said { r#type: Type::Released, phase: None, workload_ref: None, ..bad.told[nth].clone() };
        bad.told.insert(nth + 1, Said { tenant_id: Some("t1".to_owned()), ..released });
        Some(())
    }),
    ("the burst leaves an object out", |good, bad, dice| {
        bad.told.remove(good.any(dice, |nth, _| !good.is_live(nth))?);
        Some(())
    }),
    ("a deletion is invented", |good, bad, dice| {
        let nth = good.any(dice, |_, said| said.r#type == Type::State && !deleted(said))?;
        let gone = Said { phase: Some("Deleted".to_owned()), ..bad.told[nth].clone() };
        bad.told.insert(nth + 1, gone);
        Some(())
    }),
    ("two messages are swapped", |good, bad, dice| {
        let told = &good.record.told;
        let nth = good.any(dice, |nth, said| {
            let next = told.get(nth + 1);
            good.is_live(nth) && next.is_some_and(|next| next != said && next.r#type.kind() == said.r#type.kind())
        })?;
        bad.told.swap(nth, nth + 1);
        Some(())
    }),
    ("a message has a field of an earlier version", |good, bad, dice| {
        let nth = good.any(dice, |_, said| said.workload_ref.is_some())?;
        bad.told[nth].workload_ref = Some("w1".to_owned());
        Some(())
    }),
    ("a field is left out", |good, bad, dice| {
        let nth = good.any(dice, |_, said| said.source.is_some())?;
        bad.told[nth].source = None;
        Some(())
    }),
    ("the last message is lost", |good, bad, _| {
        (good.record.end == End::Open).then(|| bad.told.pop()).flatten().map(drop)
    }),
    ("what a line said at a seam is lost", |good, bad, dice| {
        let nth = good.any(dice, |nth, _| {
            let from_line = good.is_live(nth) && !good.is_from_list(nth);
            from_line && (nth + 1..good.origins.len()).next().is_some_and(|next| good.is_from_list(next))
        })?;
        bad.told.remove(nth);
        Some(())
    }),
    ("a watch was begun too far ahead", |good, bad, dice| {
        let nth = good.any(dice, |nth, _| good.is_live(nth) && !good.is_from_list(nth))?;
        let Origin::Heard(kind, at) = good.origins[nth] else { return None };
        // Before a loss it is part of what was lost.
        let later = &good.record.heard[kind as usize][at + 1..];
        let next = later.iter().find(|heard| heard.is_list() || matches!(heard.what, What::Line(_)));
        if next.is_some_and(Heard::is_list) {
            return None;
        }
        let mut origins = good.origins.iter();
        bad.told.retain(|_| origins.next() != Some(&Origin::Heard(kind, at)));
        bad.heard[kind as usize][at].what = What::Bookmark(0);
        Some(())
    }),
    ("a list stands for what a watch could have told", |good, bad, dice| {
        let nth = good.any(dice, |nth, _| good.is_live(nth) && !good.is_from_list(nth))?;
        let Origin::Heard(kind, at) = good.origins[nth] else { return None };
        let heard = &mut bad.heard[kind as usize];
        let What::Line(rv) = heard[at].what else { return None };
        let reason = matches!(heard[at - 1].what, What::Gone | What::Garbage | What::Probe(_) | What::List(_));
        heard[at].what = What::List(rv);
        // In another history own watchers may list again without a reason of their own.
        (!reason && heard[at].epoch == 0).then_some(())
    }),
];

#[test]
fn the_validator_catches_what_is_planted() {
    let mut planted: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in 0..HISTORIES {
        let mut dice = Dice(seed);
        let (truth, records, _) = history(seed, &Trouble::ALL);
        for record in records.iter().filter(|record| record.end == End::Open) {
            let Some(good) = Good::of(&truth, record) else { continue };
            judge(&truth, record, true).unwrap();
            for (name, bug) in BUGS {
                let mut bad = record.clone();
                if bug(&good, &mut bad, &mut dice).is_some() && bad.told_or_heard_differs(record) {
                    *planted.entry(name).or_default() += 1;
                    assert!(judge(&truth, &bad, true).is_err(), "seed {seed}: {name}, and nobody noticed");
                }
            }
        }
    }
    println!("{planted:?}");
    for (name, _) in BUGS {
        assert!(planted.get(name).is_some_and(|count| *count >= LEAST), "{name}: {:?}", planted.get(name));
    }
}

impl Record {
    fn told_or_heard_differs(&self, other: &Record) -> bool {
        self.told != other.told || self.heard != other.heard
    }
}
