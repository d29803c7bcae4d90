// Verifies a call as the specification of Standard Webhooks says, with Node's own crypto: what a service without the SDK does.
// Reads {"secrets", "headers", "body" (base64), "now"} and prints "valid", or why not.

import { createHmac, timingSafeEqual } from "node:crypto";
import { readFileSync } from "node:fs";

const TOLERANCE_S = 300;

function fault({ secrets, headers, body, now }) {
  const id = headers["webhook-id"], timestamp = headers["webhook-timestamp"], given = headers["webhook-signature"];
  if (!id || !timestamp || !given) return "missing";
  if (!/^\d{1,12}$/.test(timestamp) || Math.abs(now - Number(timestamp)) > TOLERANCE_S) return "stale";
  const signatures = given.split(" ").filter((each) => each.startsWith("v1,")).map((each) => Buffer.from(each.slice(3), "base64"));
  const matches = secrets.some((secret) => {
    const key = Buffer.from(secret.slice("whsec_".length), "base64");
    const expected = createHmac("sha256", key).update(`${id}.${timestamp}.`).update(Buffer.from(body, "base64")).digest();
    return signatures.some((each) => each.length === expected.length && timingSafeEqual(each, expected));
  });
  return matches ? null : "forged";
}

console.log(fault(JSON.parse(readFileSync(0, "utf8"))) ?? "valid");
