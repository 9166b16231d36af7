//! The script in PowerShell: Entra ID by the Microsoft Graph module, Exchange by its own.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{Application, GRAPH_APP_ID, MAIL_READ_BASIC, MAIL_READ_WRITE, Restriction};

/// A single-quoted string: nothing in it is code, and a quote is written twice
/// (about_Quoting_Rules). PowerShell takes the typographic quotes for quotes too.
pub(in crate::cli) fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('\'');
    for character in text.chars().filter(|it| !it.is_control()) {
        if matches!(
            character,
            '\'' | '\u{2018}' | '\u{2019}' | '\u{201a}' | '\u{201b}'
        ) {
            quoted.push(character);
        }
        quoted.push(character);
    }
    quoted.push('\'');
    quoted
}

/// Text for a comment: it stays on its line.
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
        "# Registers the application '{name}' in the tenant {tenant} and lets it send as the mailboxes\n\
         # below, and no others. Run it as a Global Administrator, or as an Application Administrator and\n\
         # Privileged Role Administrator who is also in Exchange's Organization Management. Running it again\n\
         # changes only what differs.\n\
         #\n\
         #   Install-Module Microsoft.Graph.Authentication, Microsoft.Graph.Applications, ExchangeOnlineManagement\n\
         \n\
         #Requires -Modules Microsoft.Graph.Authentication, Microsoft.Graph.Applications, ExchangeOnlineManagement\n\
         $ErrorActionPreference = 'Stop'\n",
        name = comment(it.name),
        tenant = comment(it.tenant),
    )?;
    constants(text, it)?;
    entra(text, it)?;
    exchange_connection(text, it)?;
    exchange(text, it)
}

fn constants(text: &mut String, it: &Application<'_>) -> std::fmt::Result {
    writeln!(text, "$name = {}", quoted(it.name))?;
    writeln!(text, "$tenant = {}", quoted(it.tenant))?;
    writeln!(
        text,
        "# Valid until {}; thumbprint (SHA-1) as the portal shows it.",
        it.certificate.not_after
    )?;
    writeln!(
        text,
        "$thumbprint = {}",
        quoted(&it.certificate.sha1_thumbprint())
    )?;
    writeln!(
        text,
        "$certificate = [Convert]::FromBase64String({})",
        quoted(&STANDARD.encode(&it.certificate.der))
    )?;
    mailboxes(text, it)
}

fn mailboxes(text: &mut String, it: &Application<'_>) -> std::fmt::Result {
    writeln!(text, "$mailboxes = @(")?;
    for mailbox in &it.mailboxes {
        writeln!(text, "    {}", quoted(mailbox))?;
    }
    writeln!(text, ")\n")
}

fn entra(text: &mut String, it: &Application<'_>) -> std::fmt::Result {
    writeln!(
        text,
        "# --- Entra ID: the application, its service principal, its certificate ---\n\
         Connect-MgGraph -TenantId $tenant -Environment {environment} -NoWelcome `\n    \
             -Scopes 'Application.ReadWrite.All', 'AppRoleAssignment.ReadWrite.All'\n",
        environment = it.cloud.graph_module
    )?;
    match it.client_id {
        Some(client_id) => writeln!(
            text,
            "$application = Get-MgApplication -Filter \"appId eq '$({client_id})'\"\n\
             if (-not $application) {{ throw {missing} }}",
            client_id = quoted(client_id),
            missing = quoted(&format!(
                "There is no application {client_id} in this tenant. Check tenant.id and tenant.client_id, or \
                 set client_id to zeros and make this script again to register a new one."
            ))
        )?,
        None => writeln!(
            text,
            "$application = @(Get-MgApplication -All | Where-Object DisplayName -eq $name)\n\
             if ($application.Count -gt 1) {{ throw \"There are $($application.Count) applications named $name; \
             set tenant.client_id and make this script again.\" }}\n\
             if ($application) {{ $application = $application[0] }}\n\
             else {{ $application = New-MgApplication -DisplayName $name -SignInAudience 'AzureADMyOrg' }}"
        )?,
    }
    writeln!(
        text,
        "$principal = Get-MgServicePrincipal -Filter \"appId eq '$($application.AppId)'\"\n\
         if (-not $principal) {{ $principal = New-MgServicePrincipal -AppId $application.AppId }}\n\
         \n\
         # The list of certificates is replaced as a whole, so the present ones are sent along, with their keys.\n\
         $keys = @((Get-MgApplication -ApplicationId $application.Id -Property 'id,keyCredentials').KeyCredentials)\n\
         $known = $keys | Where-Object {{\n    \
             $_.Key -and [Convert]::ToBase64String($_.Key) -eq [Convert]::ToBase64String($certificate)\n\
         }}\n\
         if (-not $known) {{\n    \
             $keys += @{{ Type = 'AsymmetricX509Cert'; Usage = 'Verify'; Key = $certificate; DisplayName = $name }}\n    \
             Update-MgApplication -ApplicationId $application.Id -KeyCredentials $keys\n\
         }}\n\
         \n\
         $graph = Get-MgServicePrincipal -Filter \"appId eq '{GRAPH_APP_ID}'\"\n\
         $granted = @(Get-MgServicePrincipalAppRoleAssignment -ServicePrincipalId $principal.Id -All |\n    \
             Where-Object ResourceId -eq $graph.Id)"
    )?;
    for permission in &it.permissions {
        match it.restriction {
            // Grants add up: one for the whole tenant would undo the scope below.
            Restriction::Rbac => writeln!(
                text,
                "# {name} for the whole tenant would undo the restriction below: grants add up. Remove it.\n\
                 $granted | Where-Object AppRoleId -eq '{role}' | ForEach-Object {{\n    \
                     Remove-MgServicePrincipalAppRoleAssignment -ServicePrincipalId $principal.Id `\n        \
                         -AppRoleAssignmentId $_.Id\n\
                 }}\n",
                name = permission.name,
                role = permission.app_role,
            )?,
            Restriction::AccessPolicy => writeln!(
                text,
                "# {name} for the whole tenant; the policy below takes the other mailboxes away again.\n\
                 if (-not ($granted | Where-Object AppRoleId -eq '{role}')) {{\n    \
                     New-MgServicePrincipalAppRoleAssignment -ServicePrincipalId $principal.Id `\n        \
                         -PrincipalId $principal.Id -ResourceId $graph.Id -AppRoleId '{role}' | Out-Null\n\
                 }}\n",
                name = permission.name,
                role = permission.app_role,
            )?,
        }
    }
    Ok(())
}

fn exchange_connection(text: &mut String, it: &Application<'_>) -> std::fmt::Result {
    writeln!(
        text,
        "# --- Exchange Online: which mailboxes it may send as ---\n\
         Connect-ExchangeOnline -ExchangeEnvironmentName {environment} -ShowBanner:$false\n",
        environment = it.cloud.exchange_module
    )
}

/// The Exchange half, which expects `$name`, `$mailboxes`, `$application` and `$principal`, and a
/// connection.
fn exchange(text: &mut String, it: &Application<'_>) -> std::fmt::Result {
    match it.restriction {
        Restriction::Rbac => rbac(text, it)?,
        Restriction::AccessPolicy => access_policy(text)?,
    }
    writeln!(
        text,
        "\nWrite-Host \"\"\n\
         Write-Host \"Put this into graphpost.toml, [tenant]:\"\n\
         Write-Host \"client_id = `\"$($application.AppId)`\"\"\n\
         Write-Host \"A new grant takes up to two hours to work. Then: graphpost check --send-to you@example.org\""
    )
}

/// Microsoft's page "Role Based Access Control for Applications in Exchange Online".
fn rbac(text: &mut String, it: &Application<'_>) -> std::fmt::Result {
    writeln!(
        text,
        "# The object id is that of the service principal (the enterprise application), not of the registration.\n\
         if (-not (Get-ServicePrincipal | Where-Object AppId -eq $application.AppId)) {{\n    \
             New-ServicePrincipal -AppId $application.AppId -ObjectId $principal.Id -DisplayName $name | Out-Null\n\
         }}\n\
         \n\
         $scope = \"$name mailboxes\"\n\
         $filter = ($mailboxes | ForEach-Object {{\n    \
             $address = (Get-Mailbox -Identity $_).PrimarySmtpAddress.ToString()\n    \
             \"PrimarySmtpAddress -eq '\" + $address.Replace(\"'\", \"''\") + \"'\"\n\
         }}) -join ' -or '\n\
         if (Get-ManagementScope | Where-Object Name -eq $scope) {{\n    \
             Set-ManagementScope -Identity $scope -RecipientRestrictionFilter $filter\n\
         }}\n\
         else {{\n    \
             New-ManagementScope -Name $scope -RecipientRestrictionFilter $filter | Out-Null\n\
         }}\n"
    )?;
    for permission in &it.permissions {
        writeln!(
            text,
            "$assignment = \"$name {name}\"\n\
             if (-not (Get-ManagementRoleAssignment -Identity $assignment -ErrorAction SilentlyContinue)) {{\n    \
                 New-ManagementRoleAssignment -Name $assignment -App $principal.Id -Role '{role}' `\n        \
                     -CustomResourceScope $scope | Out-Null\n\
             }}\n",
            name = permission.name,
            role = permission.exchange_role
        )?;
    }
    let unneeded = [MAIL_READ_WRITE, MAIL_READ_BASIC]
        .into_iter()
        .filter(|permission| !it.permissions.contains(permission));
    for permission in unneeded {
        writeln!(
            text,
            "# This configuration has no use for {name} any more.\n\
             Get-ManagementRoleAssignment -Identity \"$name {name}\" -ErrorAction SilentlyContinue |\n    \
                 Remove-ManagementRoleAssignment -Confirm:$false\n",
            name = permission.name
        )?;
    }
    writeln!(
        text,
        "# The proof. This test asks no cache; Graph itself may take up to two hours.\n\
         foreach ($mailbox in $mailboxes) {{\n    \
             Test-ServicePrincipalAuthorization -Identity $principal.Id -Resource $mailbox |\n        \
                 Format-Table 'RoleName', 'GrantedPermissions', 'AllowedResourceScope', 'InScope'\n\
         }}\n\
         $other = Get-Mailbox -ResultSize 50 | Where-Object {{ $_.UserPrincipalName -notin $mailboxes }} |\n    \
             Select-Object -First 1\n\
         if ($other) {{\n    \
             Write-Host \"InScope must be False for $($other.UserPrincipalName):\"\n    \
             Test-ServicePrincipalAuthorization -Identity $principal.Id -Resource $other.UserPrincipalName |\n        \
                 Format-Table 'RoleName', 'GrantedPermissions', 'AllowedResourceScope', 'InScope'\n\
         }}"
    )
}

/// Microsoft's page on New-ApplicationAccessPolicy.
fn access_policy(text: &mut String) -> std::fmt::Result {
    writeln!(
        text,
        "# Microsoft is replacing application access policies by RBAC for Applications and asks that no new ones\n\
         # be made. Without --application-access-policy this script is made for RBAC.\n\
         $group = Get-DistributionGroup -Filter \"DisplayName -eq '$($name.Replace(\"'\", \"''\")) mailboxes'\"\n\
         if (-not $group) {{\n    \
             $group = New-DistributionGroup -Name \"$name mailboxes\" -Type Security -MemberJoinRestriction Closed\n    \
             Set-DistributionGroup -Identity $group.Identity -HiddenFromAddressListsEnabled $true\n\
         }}\n\
         $members = @(Get-DistributionGroupMember -Identity $group.Identity -ResultSize Unlimited)\n\
         $wanted = $mailboxes | ForEach-Object {{ (Get-Mailbox -Identity $_).PrimarySmtpAddress.ToString() }}\n\
         $members | Where-Object {{ $_.PrimarySmtpAddress.ToString() -notin $wanted }} | ForEach-Object {{\n    \
             Remove-DistributionGroupMember -Identity $group.Identity -Member $_.Identity -Confirm:$false\n\
         }}\n\
         $wanted | Where-Object {{ $_ -notin @($members | ForEach-Object {{ $_.PrimarySmtpAddress.ToString() }}) }} |\n    \
             ForEach-Object {{ Add-DistributionGroupMember -Identity $group.Identity -Member $_ }}\n\
         if (-not (Get-ApplicationAccessPolicy | Where-Object AppId -eq $application.AppId)) {{\n    \
             New-ApplicationAccessPolicy -AppId $application.AppId -PolicyScopeGroupId $group.PrimarySmtpAddress `\n        \
                 -AccessRight RestrictAccess -Description \"$name may send as these mailboxes only\" | Out-Null\n\
         }}\n\
         \n\
         # The proof: Granted for these, Denied for any other.\n\
         foreach ($mailbox in $mailboxes) {{\n    \
             Test-ApplicationAccessPolicy -Identity $mailbox -AppId $application.AppId |\n        \
                 Format-Table 'Mailbox', 'AccessCheckResult'\n\
         }}"
    )
}

/// The Exchange half alone, for a script whose Entra half is in another language: the ids are
/// parameters.
pub(super) fn exchange_script(it: &Application<'_>) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = (|| {
        writeln!(
            text,
            "param([Parameter(Mandatory)] [guid] $AppId, [Parameter(Mandatory)] [guid] $PrincipalId)\n\
             #Requires -Modules ExchangeOnlineManagement\n\
             $ErrorActionPreference = 'Stop'\n\
             $name = {}\n\
             $application = [pscustomobject]@{{ AppId = \"$AppId\" }}\n\
             $principal = [pscustomobject]@{{ Id = \"$PrincipalId\" }}",
            quoted(it.name)
        )?;
        mailboxes(&mut text, it)?;
        exchange_connection(&mut text, it)?;
        exchange(&mut text, it)
    })();
    text
}
