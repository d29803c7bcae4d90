// Starts Swagger UI. A file of its own, because the Content-Security-Policy allows no inline script.
"use strict";

SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  displayRequestDuration: true,
  defaultModelsExpandDepth: 0,
  requestSnippetsEnabled: true,
  validatorUrl: null, // the default sends the document to a public service
});
