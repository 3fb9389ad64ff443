//! Tasks that are held: they take no part in a run until they are let in, and then an ordinary one.

use super::*;
use crate::engine::resources::{Claim, Inventory};

fn task(deps: &[u32], services: &[u32]) -> TaskSpec {
    TaskSpec {
        deps: deps.iter().map(|at| TaskId(*at)).collect(),
        services: services.iter().map(|at| ServiceId(*at)).collect(),
        claim: Claim::default(),
    }
}

fn scheduler(tasks: Vec<TaskSpec>, services: usize) -> Scheduler {
    let services = vec![ServiceSpec::default(); services];
    let limits = Limits {
        tasks: usize::MAX,
        hostless: usize::MAX,
    };
    Scheduler::new(Problem::new(tasks, services), &Inventory::default(), limits)
}

/// Lets everything happen at once that may; the tasks that ran, in order.
fn run(scheduler: &mut Scheduler) -> Vec<u32> {
    let mut ran = Vec::new();
    loop {
        let mut moved = false;
        while let Some(task) = scheduler.next_undecided() {
            scheduler.admit(task);
            moved = true;
        }
        for command in scheduler.commands() {
            moved = true;
            match command {
                Command::Acquired(_) => {}
                Command::Start(service) => scheduler.service_up(service),
                Command::Stop(service) => {
                    scheduler.service_down(service);
                }
                Command::Run(task) => {
                    ran.push(task.0);
                    scheduler.finish(task);
                }
            }
        }
        if !moved {
            return ran;
        }
    }
}

#[test]
fn what_is_held_takes_no_part() {
    let tasks = vec![task(&[], &[]), task(&[0], &[0]), task(&[], &[0])];
    let mut scheduler = scheduler(tasks, 1);
    scheduler.hold(TaskId(1));
    scheduler.hold(TaskId(1));
    assert!(scheduler.is_held(TaskId(1)));
    assert_eq!(scheduler.idle_tasks(), [TaskId(0), TaskId(2)]);
    assert_eq!(scheduler.pending_users_of(ServiceId(0)), [TaskId(2)]);
    let ran = run(&mut scheduler);
    assert_eq!(ran, [0, 2]);
    // Its service is down, too: nobody is known to need it.
    assert!(scheduler.is_over());
    scheduler.finish(TaskId(1));
    assert!(scheduler.is_over() && scheduler.is_held(TaskId(1)));

    scheduler.let_in(TaskId(1));
    scheduler.let_in(TaskId(1));
    assert!(!scheduler.is_over() && !scheduler.is_held(TaskId(1)));
    assert_eq!(scheduler.pending_users_of(ServiceId(0)), [TaskId(1)]);
    assert_eq!(run(&mut scheduler), [1]);
    assert!(scheduler.is_over());
    assert_eq!(scheduler.starts(), 2);
}

#[test]
fn what_is_let_in_early_waits_for_what_it_depends_on() {
    let tasks = vec![task(&[], &[]), task(&[0], &[]), task(&[1], &[])];
    let mut scheduler = scheduler(tasks, 0);
    scheduler.hold(TaskId(2));
    scheduler.hold(TaskId(1));
    scheduler.let_in(TaskId(1));
    scheduler.let_in(TaskId(2));
    assert_eq!(run(&mut scheduler), [0, 1, 2]);
    assert!(scheduler.is_over());
}

#[test]
fn a_run_that_ends_begins_nothing_that_is_held() {
    let tasks = vec![task(&[], &[]), task(&[], &[])];
    let mut scheduler = scheduler(tasks, 0);
    scheduler.hold(TaskId(1));
    scheduler.stop_submitting();
    assert_eq!(scheduler.idle_tasks(), [TaskId(0)]);
    scheduler.finish(TaskId(0));
    assert!(scheduler.is_over());
}

#[test]
fn what_is_parked_keeps_its_services_and_holds_nobody_up() {
    // The second uses what the first does, the third depends on the first.
    let tasks = vec![task(&[], &[0]), task(&[], &[0]), task(&[0], &[1])];
    let mut scheduler = scheduler(tasks, 2);
    assert_eq!(scheduler.next_undecided(), Some(TaskId(0)));
    scheduler.park(TaskId(0));
    assert_eq!(run(&mut scheduler), [1]);
    assert!(!scheduler.is_over());
    assert_eq!(scheduler.idle_tasks(), [TaskId(0), TaskId(2)]);
    scheduler.admit(TaskId(0));
    assert_eq!(run(&mut scheduler), [0, 2]);
    assert!(scheduler.is_over());
    assert_eq!(scheduler.starts(), 2);
}
