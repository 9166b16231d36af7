//! The script for the Azure CLI: Entra ID's half. Exchange has no part in that tool, so its half is
//! written beside, as PowerShell.

use std::fmt::Write;

use super::{Application, GRAPH_APP_ID, Restriction, powershell};

/// A single-quoted word of the POSIX shell: nothing in it is code (POSIX.1-2024 XCU §2.2.2).
pub(super) fn quoted(text: &str) -> String {
    let text: String = text.chars().filter(|it| !it.is_control()).collect();
    format!("'{}'", text.replace('\'', r"'\''"))
}

fn comment(text: &str) -> String {
    text.chars().filter(|it| !it.is_control()).collect()
}

/// The whole script.
pub(super) fn script(it: &Application<'_>) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write(&mut text, it);
    text
}

fn write(text: &mut String, it: &Application<'_>) -> std::fmt::Result {
    writeln!(
        text,
        "#!/bin/sh\n\
         # Registers the application '{name}' in the tenant {tenant}, uploads this gateway's certificate, and\n\
         # writes exchange.ps1, which lets it send as the mailboxes of the sender table, and no others.\n\
         # Needs the Azure CLI (az). Running it again changes only what differs.\n\
         set -eu\n\
         \n\
         az cloud set --name {cloud}\n\
         az login --tenant {quoted_tenant} --allow-no-subscriptions --output none\n",
        name = comment(it.name),
        tenant = comment(it.tenant),
        quoted_tenant = quoted(it.tenant),
        cloud = it.cloud.azure_cli,
    )?;
    match it.client_id {
        Some(client_id) => writeln!(
            text,
            "app={client_id}\n\
             az ad app show --id \"$app\" --output none",
            client_id = quoted(client_id)
        )?,
        None => writeln!(
            text,
            "name={name}\n\
             app=$(az ad app list --filter \"displayName eq '$(printf %s \"$name\" | sed \"s/'/''/g\")'\" \\\n    \
                 --query '[0].appId' --output tsv)\n\
             if [ -z \"$app\" ]; then\n    \
                 app=$(az ad app create --display-name \"$name\" --sign-in-audience AzureADMyOrg \\\n        \
                     --query appId --output tsv)\n\
             fi",
            name = quoted(it.name)
        )?,
    }
    writeln!(
        text,
        "az ad sp show --id \"$app\" --output none 2>/dev/null || az ad sp create --id \"$app\" --output none\n\
         principal=$(az ad sp show --id \"$app\" --query id --output tsv)\n\
         \n\
         # The certificate, without its key; valid until {until}.\n\
         certificate=$(mktemp)\n\
         trap 'rm -f \"$certificate\"' EXIT\n\
         cat >\"$certificate\" <<'END_OF_CERTIFICATE'\n\
         {pem}\n\
         END_OF_CERTIFICATE\n\
         # --append keeps the certificates that are there; without it they would all be replaced.\n\
         thumbprint={thumbprint}\n\
         if ! az ad app credential list --id \"$app\" --cert --query '[].customKeyIdentifier' --output tsv |\n    \
             grep -qiF \"$thumbprint\"; then\n    \
             az ad app credential reset --id \"$app\" --cert \"@$certificate\" --append --output none\n\
         fi\n",
        until = it.certificate.not_after,
        pem = it.certificate.to_pem().trim_end(),
        thumbprint = quoted(&it.certificate.sha1_thumbprint()),
    )?;
    for permission in &it.permissions {
        match it.restriction {
            Restriction::Rbac => writeln!(
                text,
                "# {name} for the whole tenant would undo the restriction that exchange.ps1 makes: grants add up.\n\
                 graph=$(az ad sp show --id {GRAPH_APP_ID} --query id --output tsv)\n\
                 az rest --method get --url \"https://{host}/v1.0/servicePrincipals/$principal/appRoleAssignments\" \\\n    \
                     --query \"value[?resourceId=='$graph' && appRoleId=='{role}'].id\" --output tsv |\n\
                 while read -r assignment; do\n    \
                     az rest --method delete \\\n        \
                         --url \"https://{host}/v1.0/servicePrincipals/$principal/appRoleAssignments/$assignment\"\n\
                 done\n",
                name = permission.name,
                role = permission.app_role,
                host = it.cloud.graph_host,
            )?,
            Restriction::AccessPolicy => writeln!(
                text,
                "# {name} for the whole tenant; the policy that exchange.ps1 makes takes the rest away again.\n\
                 az ad app permission add --id \"$app\" --api {GRAPH_APP_ID} --api-permissions '{role}=Role'\n\
                 az ad app permission admin-consent --id \"$app\"\n",
                name = permission.name,
                role = permission.app_role,
            )?,
        }
    }
    writeln!(
        text,
        "cat >exchange.ps1 <<'END_OF_SCRIPT'\n\
         {}END_OF_SCRIPT\n\
         \n\
         echo \"Now, in PowerShell:  ./exchange.ps1 -AppId $app -PrincipalId $principal\"\n\
         echo \"and in graphpost.toml, [tenant]:  client_id = \\\"$app\\\"\"",
        powershell::exchange_script(it)
    )
}
