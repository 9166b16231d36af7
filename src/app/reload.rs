//! SIGHUP: the configuration and the files it names are read again. All of it is taken, or nothing.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use super::{Error, Gateway, Outside};
use crate::config::{Config, Environment};
use crate::convert::Wishes;
use crate::delivery::Settings;
use crate::event;
use crate::postmaster::Postmaster;

/// The queue answers within this time, or something is very wrong.
const ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

impl Gateway {
    /// Reads the configuration again: senders, accounts, certificates, the credential, the limits of
    /// the delivery and the log's level change at once. Where anything is wrong, the running
    /// configuration stays, and the log says so.
    pub async fn reload(&mut self) {
        match self.read_again().await {
            Ok(()) => {
                event::reloaded(&self.config.path);
                self.metrics.config_last_reload_successful.set(1);
            }
            Err(error) => {
                event::reload_refused(&self.config.path, &error.to_string());
                self.metrics.config_last_reload_successful.set(0);
            }
        }
    }

    async fn read_again(&mut self) -> Result<(), Error> {
        let path = self.config.path.clone();
        let read = tokio::task::spawn_blocking(move || Config::load(&path, &Environment::of_process()));
        let new = read.await.map_err(Error::new)?.map_err(Error::new)?;
        let outside = Outside::open(&new, &self.metrics).await?;

        // From here on nothing is refused; only a listener may have to keep its old certificate.
        self.smtp.set_policy(Arc::clone(&outside.policy));
        self.smtp.set_wishes(Wishes::of(&new.tenant, &new.delivery));
        self.smtp.set_accounts(outside.accounts.clone());
        self.smtp.reload_certificates(&new.listeners).await;
        self.certificates.replace(outside.tokens);
        self.notifier.change(outside.ways);
        self.delivery
            .change(Settings {
                graph: outside.graph,
                delivery: new.delivery.clone(),
                postmaster: Postmaster::new(
                    self.spool.clone(),
                    new.bounce.clone(),
                    self.config.smtp.hostname.clone(),
                )
                .notifying(self.notifier.clone()),
                wishes: Wishes::of(&new.tenant, &new.delivery),
            })
            .await;
        event::set_level(new.log.level);
        for what in needs_a_restart(&self.config, &new) {
            event::needs_a_restart(what);
        }
        // What needs a restart stays on the list until there is one.
        self.config = Config {
            listeners: std::mem::take(&mut self.config.listeners),
            smtp: self.config.smtp.clone(),
            spool: self.config.spool.clone(),
            admin: self.config.admin.clone(),
            ..new
        };
        Ok(())
    }

    /// Whether the queue answers: for the service manager's watchdog.
    pub(super) async fn is_alive(&self) -> bool {
        tokio::time::timeout(ALIVE_TIMEOUT, self.spool.statistics())
            .await
            .is_ok_and(|it| it.is_ok())
    }
}

fn needs_a_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    let mut changed = Vec::new();
    let mut compare = |what, same: bool| {
        if !same {
            changed.push(what);
        }
    };
    compare("listener", same(&old.listeners, &new.listeners));
    compare("smtp", same(&old.smtp, &new.smtp));
    compare("spool", same(&old.spool, &new.spool));
    compare("admin", same(&old.admin, &new.admin));
    compare(
        "bounce.warn_after",
        old.bounce.warn_after == new.bounce.warn_after,
    );
    compare("log.format", old.log.format == new.log.format);
    changed
}

/// Secrets have no equality, and their `Debug` is blind; passwords are read again in any case.
fn same<T: Debug>(old: &T, new: &T) -> bool {
    format!("{old:?}") == format!("{new:?}")
}
