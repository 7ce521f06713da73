//! A virtio console in a slot.

use std::sync::{Arc, Mutex};

use super::slots::{AttachContext, Slots};
use crate::agent;
use crate::devices::virtio::console::Console;
use crate::vmm::error::VmmError;
use crate::vmm::pipe::{Inbox, InboxSink, Pipe, Port};

/// Attach a console. Returns the pipes of its terminal and, `with_agent`, of the agent's port.
///
/// # Errors
/// No slot or file descriptor is left.
pub fn attach(
    slots: &mut Slots,
    context: &mut AttachContext,
    with_agent: bool,
) -> Result<Vec<Pipe>, VmmError> {
    let inboxes: [Arc<Mutex<Inbox>>; 2] = Default::default();
    let [terminal, port] = inboxes.clone().map(|inbox| Box::new(InboxSink(inbox)));
    let mut device = Console::new(terminal);
    if with_agent {
        device = device.with_port(agent::PORT_NAME, port);
    }
    let slot = slots.attach(context, "virtio console", Box::new(device))?;
    let pipe = |(number, inbox)| Pipe::Port(Port::new(slot.clone(), number, inbox));
    let ports = inboxes.into_iter().take(if with_agent { 2 } else { 1 });
    Ok(ports.enumerate().map(pipe).collect())
}
