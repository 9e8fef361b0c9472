//! What holds for one subject after all layers.

use std::fmt;

use serde::Serialize;

use crate::decide::{Allow, Policy, View};
use crate::decision::{Generation, Rule};
use crate::layer::{Entry, Resource, Value};
use crate::request::{Isolation, Subject};

/// What holds for one subject. `Display` is for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Effective {
    /// Whom it is about.
    pub who: Subject,
    /// The edition of the policy.
    pub generation: Generation,
    /// Maxima. What is not among them has none.
    pub maxima: Vec<Bound>,
    /// Lists by name: `images`, `mounts`, `commands`, `users`, `env`, `network`.
    pub lists: Vec<Listed>,
    /// What makes all mounts read-only, where something does.
    pub read_only: Option<Rule>,
    /// The weakest isolation.
    pub isolation: Option<Weakest>,
}

/// A maximum.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Bound {
    /// Of what.
    pub resource: Resource,
    /// In the units of the request.
    pub most: u64,
    /// What says so.
    pub rule: Rule,
}

/// The weakest isolation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Weakest {
    /// This or a stronger one.
    pub isolation: Isolation,
    /// What says so.
    pub rule: Rule,
}

/// Patterns of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// Of what.
    pub name: &'static str,
    /// Something must be matched by one rule of each.
    pub allow: Vec<Vec<Rule>>,
    /// And by none of these.
    pub deny: Vec<Rule>,
}

impl Effective {
    /// The maximum of something, where there is one.
    pub fn most(&self, resource: Resource) -> Option<u64> {
        self.maxima.iter().find(|bound| bound.resource == resource).map(|bound| bound.most)
    }
}

impl Policy {
    /// What holds for one subject after all layers.
    pub fn effective(&self, who: &Subject) -> Effective {
        let view = View::new(self, who);
        let maxima = Resource::ALL.iter().filter_map(|&resource| {
            let limits = view.maximum(resource).into_iter().chain(view.narrower(resource));
            let Value { value, rule } = limits.min_by_key(|limit| (limit.value, &limit.rule))?;
            Some(Bound { resource, most: *value, rule: rule.clone() })
        });
        let tiers = view.weakest().into_iter().chain(view.stronger());
        let isolation = tiers
            .max_by_key(|tier| (tier.value, std::cmp::Reverse(&tier.rule)))
            .map(|tier| Weakest { isolation: tier.value, rule: tier.rule.clone() });
        let read_only = self
            .layers()
            .filter_map(|layer| layer.mounts.read_only.as_ref())
            .find(|read_only| read_only.value)
            .map(|read_only| read_only.rule.clone());
        let hidden = view.hidden().into_iter().map(|(_, entry)| entry);
        let fixed =
            self.layers().flat_map(|layer| layer.mounts.never.iter().chain(&layer.mounts.itself));
        let lists = vec![
            listed(
                "images",
                &view.images(),
                view.denied(|l| l.images.deny.as_ref()).into_iter().map(|it| it.1),
            ),
            listed("mounts", &view.roots(), hidden.chain(fixed)),
            listed(
                "commands",
                &view.commands(),
                view.denied(|l| l.commands.deny.as_ref()).into_iter().map(|it| it.1),
            ),
            listed("users", &view.users(), std::iter::empty()),
            listed(
                "env",
                &view.env(),
                view.denied(|l| l.env.deny.as_ref()).into_iter().map(|it| it.1),
            ),
            listed("network", &view.network(), std::iter::empty()),
        ];
        Effective {
            who: who.clone(),
            generation: self.generation(),
            maxima: maxima.collect(),
            lists,
            read_only,
            isolation,
        }
    }
}

fn listed<'a, P: 'a>(
    name: &'static str,
    allow: &Allow<'a, P>,
    deny: impl Iterator<Item = &'a Entry<P>>,
) -> Listed {
    let rules = |entries: &mut dyn Iterator<Item = &'a Entry<P>>| -> Vec<Rule> {
        entries.map(|entry| entry.rule.clone()).collect()
    };
    let general = allow
        .lists
        .iter()
        .map(|list| rules(&mut list.entries.iter().chain(allow.granted.iter().copied())));
    let narrowing = allow.narrowing.iter().map(|list| rules(&mut list.entries.iter()));
    Listed { name, allow: general.chain(narrowing).collect(), deny: rules(&mut { deny }) }
}

impl fmt::Display for Effective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Subject { name, role, workspace } = &self.who;
        write!(f, "{name:?}, {role}")?;
        match workspace {
            Some(workspace) => writeln!(f, " of {workspace:?}")?,
            None => writeln!(f)?,
        }
        writeln!(f, "generation: {}", self.generation)?;
        for Bound { resource, most, rule } in &self.maxima {
            writeln!(f, "{}: at most {most}\n  {rule}", resource.as_str())?;
        }
        if let Some(Weakest { isolation, rule }) = &self.isolation {
            writeln!(f, "isolation: {isolation} or stronger\n  {rule}")?;
        }
        if let Some(rule) = &self.read_only {
            writeln!(f, "mounts: read-only\n  {rule}")?;
        }
        for Listed { name, allow, deny } in &self.lists {
            for (index, rules) in allow.iter().enumerate() {
                let also = if index == 0 { "one" } else { "and one" };
                writeln!(f, "{name}: {also} of")?;
                rules.iter().try_for_each(|rule| writeln!(f, "  {rule}"))?;
            }
            if !deny.is_empty() {
                writeln!(f, "{name}: none of")?;
                deny.iter().try_for_each(|rule| writeln!(f, "  {rule}"))?;
            }
        }
        Ok(())
    }
}
