//! The tasks that this process has started and has to stop, whatever ends it.

use parking_lot::{Mutex, MutexGuard};

use crate::aws::{Aws, TaskState};
use crate::cli::launch::Place;

/// What is to be done before this process may end.
#[derive(Default)]
pub(super) struct Owed {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// How many RunTask are under way.
    starting: usize,
    tasks: Vec<Debt>,
}

/// A task that is to be stopped.
struct Debt {
    aws: Aws,
    environment: String,
    cluster: String,
    arn: String,
    id: String,
}

impl Owed {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    /// Runs `start`, and remembers the task that comes of it.
    pub(super) async fn start<E>(
        &self,
        place: &Place,
        start: impl Future<Output = Result<TaskState, E>>,
    ) -> Result<TaskState, E> {
        self.lock().starting += 1;
        let started = start.await;
        // Given up before its answer, this is not reached: then nobody knows whether there is a task.
        self.lock().starting -= 1;
        let task = started?;
        self.lock().tasks.push(Debt {
            aws: place.aws.clone(),
            environment: place.environment.name.clone(),
            cluster: place.environment.cluster.clone(),
            arn: task.arn.clone(),
            id: task.id.clone(),
        });
        Ok(task)
    }

    /// The task is stopped, or shall go on.
    pub(super) fn settle(&self, task: &TaskState) {
        self.lock().tasks.retain(|debt| debt.arn != task.arn);
    }

    /// Asks ECS to stop what is still to be stopped, and says what came of it. For the way out after a fault.
    pub(super) async fn stop_all(&self) -> Vec<String> {
        let debts = std::mem::take(&mut self.lock().tasks);
        let mut said = Vec::new();
        for debt in debts {
            match debt.aws.stop_task(&debt.cluster, &debt.arn, "bastion ended by a fault of its own").await {
                Ok(()) => said.push(format!("task {} is being stopped", debt.id)),
                Err(error) => said.push(format!("{}: {error}", debt.left())),
            }
        }
        said
    }

    /// What is left when this process ends now.
    pub(super) fn left(&self) -> Vec<String> {
        let inner = self.lock();
        let mut left: Vec<String> = inner.tasks.iter().map(Debt::left).collect();
        if inner.starting > 0 {
            left.push(
                "a task may be starting, which nobody stops until it is idle: bastion status shows it".to_owned(),
            );
        }
        left
    }
}

impl Debt {
    fn left(&self) -> String {
        format!("task {} may still run: bastion down {}", self.id, self.environment)
    }
}
