//! Members of a gang on several hosts are of no use one without the other: where a scheduler hands
//! hosts out it is told which of them start at one time.

use std::collections::BTreeSet;
use std::time::Duration;

use super::context::Context;
use super::steps::Site;
use crate::error::Result;
use crate::exec::{Executor, Handle, Together};
use crate::rule::action::StepAction;

/// Between looks whether what waits in a queue has its turn, first and at most.
const LOOK: Duration = Duration::from_secs(1);
const LOOK_SELDOM: Duration = Duration::from_secs(8);

/// What the members that wait for no other ask of a scheduler; nothing where one host has them all.
/// One with `after` comes when what it waits for is ready, however long that takes: the others
/// cannot be held back until then.
pub(super) fn together(
    context: &Context,
    site: &Site<'_>,
    gang: &[StepAction],
) -> Result<Option<Together>> {
    let at_once = gang.iter().filter(|step| is_at_once(step));
    let placed = at_once.map(|step| Ok((step, context.host(step.role.as_deref())?.name)));
    let placed: Vec<(&StepAction, String)> = placed.collect::<Result<_>>()?;
    let hosts: BTreeSet<&String> = placed.iter().map(|(_, host)| host).collect();
    Ok(match placed.first() {
        Some((first, _)) if hosts.len() > 1 => Some(Together {
            group: site.token(&first.name).0,
            count: u32::try_from(placed.len()).unwrap_or(u32::MAX),
        }),
        _ => None,
    })
}

/// Whether a member begins with the gang. What has no role is beside `doe` and asks for nothing.
pub(super) fn is_at_once(step: &StepAction) -> bool {
    step.role.is_some() && step.after.is_empty()
}

/// Waits until what a scheduler let wait has begun; for ever when it never does, which who waits for
/// its end is told. Nobody may count on it before, nor count the time that it has to get ready.
pub(super) async fn has_its_turn(executor: &dyn Executor, handle: &Handle) {
    let mut pause = LOOK;
    loop {
        tokio::time::sleep(pause).await;
        // Who cannot be asked now is asked again.
        if executor.has_begun(handle).await.unwrap_or(false) {
            return;
        }
        pause = (pause * 5 / 4).min(LOOK_SELDOM);
    }
}
