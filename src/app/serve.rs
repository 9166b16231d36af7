//! `graphpost serve`: a gateway, and the signals and the service manager around it.

use std::io::{self, Write};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Interval, MissedTickBehavior};

use super::{Error, Gateway, auth_word, start, tls_word};
use crate::config::Config;
use crate::event;

/// How long blocking work, such as the check of a password, may hold up the end of the process.
const BLOCKING_TIMEOUT: Duration = Duration::from_secs(1);

/// Runs the gateway until a signal stops it. Prints one line per listening address.
///
/// SIGTERM and SIGINT drain and stop, a second one stops at once; SIGHUP reloads.
///
/// # Errors
/// What keeps it from starting, or what stopped it.
pub fn serve(config: Config) -> Result<(), Error> {
    event::init(&config.log);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Error(format!("cannot start: {error}")))?;
    let result = runtime.block_on(run(config));
    runtime.shutdown_timeout(BLOCKING_TIMEOUT);
    event::flush();
    result
}

async fn run(config: Config) -> Result<(), Error> {
    // Before anything takes long: a signal during the start must not be the default's death.
    let mut signals = Signals::new().map_err(|error| Error(format!("cannot wait for signals: {error}")))?;
    let mut gateway = tokio::select! {
        started = start(config) => started?,
        () = signals.stop() => return Ok(()),
    };
    // Whoever started us may have gone, or reads nothing: that is no reason not to run.
    let _ = print_addresses(&gateway, &mut io::stdout().lock());
    notify(&[NotifyState::Ready]);

    let mut watchdog = watchdog();
    let result = loop {
        tokio::select! {
            order = signals.next() => match order {
                Order::Stop => break Ok(()),
                Order::Reload => {
                    notify_reloading();
                    gateway.reload().await;
                    // Who waits for the end of a reload looks into the log next.
                    let _ = tokio::task::spawn_blocking(event::flush).await;
                    notify(&[NotifyState::Ready]);
                }
            },
            error = gateway.failed() => {
                event::spool_broken(&error.to_string());
                break Err(error);
            }
            () = tick(&mut watchdog) => {
                if gateway.is_alive().await {
                    notify(&[NotifyState::Watchdog]);
                }
            }
        }
    };
    notify(&[NotifyState::Stopping]);
    tokio::select! {
        () = gateway.shutdown() => {}
        // What is under way is found by the next start.
        () = signals.stop() => {}
    }
    result
}

fn print_addresses(gateway: &Gateway, out: &mut impl Write) -> io::Result<()> {
    let listeners = gateway.config.listeners.iter().zip(gateway.smtp_addresses());
    for (listener, address) in listeners {
        writeln!(
            out,
            "listening smtp {address} tls={} auth={}",
            tls_word(listener.tls),
            auth_word(listener.auth)
        )?;
    }
    if let Some(address) = gateway.admin_address() {
        writeln!(out, "listening admin http://{address}")?;
    }
    out.flush()
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Stop,
    Reload,
}

impl Signals {
    fn new() -> io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Order {
        tokio::select! {
            _ = self.terminate.recv() => Order::Stop,
            _ = self.interrupt.recv() => Order::Stop,
            _ = self.hang_up.recv() => Order::Reload,
        }
    }

    async fn stop(&mut self) {
        while self.next().await != Order::Stop {}
    }
}

/// Tells systemd, where it wants to know (sd_notify(3)).
fn notify(states: &[NotifyState<'_>]) {
    // Without systemd there is nobody to tell.
    let _ = sd_notify::notify(states);
}

/// systemd 253 and later wants to know when, to tell this reload from another (sd_notify(3)).
fn notify_reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(_) => notify(&[NotifyState::Reloading]),
    }
}

/// Ticks twice in the time in which systemd wants a sign of life.
fn watchdog() -> Option<Interval> {
    let period = sd_notify::watchdog_enabled()? / 2;
    if period.is_zero() {
        return None;
    }
    let mut interval = tokio::time::interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    Some(interval)
}

async fn tick(watchdog: &mut Option<Interval>) {
    match watchdog {
        Some(interval) => {
            interval.tick().await;
        }
        None => std::future::pending().await,
    }
}
