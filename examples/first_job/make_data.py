"""Writes train.jsonl, test.jsonl and validation.jsonl: mails to a shop, each with the title of its ticket.

`python make_data.py` makes 400, 64 and 32 rows with the columns mail, title, request, product and order. A mail never
has the word for its request in it, names two things and two numbers, and its title needs one of each.
"""

import json
import random

REQUESTS = {
    "Refund": ["I would like my money back.", "Please return what I paid.", "Can you pay me back?"],
    "Repair": ["Can you fix it?", "Could somebody mend it?", "I hope that you can make it work again."],
    "Exchange": ["Please send me another one.", "Can I have a new one instead?", "I would like a different one."],
    "Cancel": ["I do not want it any more.", "Please stop the order.", "You need not send it."],
    "Delivery": ["Where is it?", "When will it arrive?", "It should have been here on Monday."],
}
PRODUCTS = [
    "toaster",
    "lamp",
    "kettle",
    "radio",
    "chair",
    "desk",
    "printer",
    "fan",
    "clock",
    "blender",
    "heater",
    "mirror",
]
OPENINGS = ["Hello,", "Dear team,", "Good morning,", "Hi there,"]
FINE = ["The {} is fine.", "With the {} all is well.", "I am happy with the {}.", "The {} works."]
BOTHER = ["But there is the {}.", "I write because of the {}.", "This is about the {}.", "My question is on the {}."]
NUMBERS = [
    "My order is {order}, my phone {phone}.",
    "Call me at {phone}. The order is {order}.",
    "Order {order}, phone {phone}.",
]
NAMES = ["Mia Berg", "Tom Hale", "Ana Ruiz", "Li Wei", "Omar Said", "Eva Lind"]


def row(draw: random.Random) -> dict[str, str]:
    """One mail with its title and what the title is made of."""
    request = draw.choice(list(REQUESTS))
    product, other = draw.sample(PRODUCTS, 2)
    order, phone = (str(draw.randrange(10_000, 100_000)) for _ in range(2))
    about = [draw.choice(FINE).format(other), f"{draw.choice(BOTHER).format(product)} {draw.choice(REQUESTS[request])}"]
    numbers = draw.choice(NUMBERS).format(order=order, phone=phone)
    bought = " and a ".join(draw.sample([product, other], 2))
    mail = f"{draw.choice(OPENINGS)} I ordered a {bought}. {' '.join(about)} {numbers} {draw.choice(NAMES)}"
    return {
        "mail": mail,
        "title": f"{request}: {product}, order {order}",
        "request": request,
        "product": product,
        "order": order,
    }


if __name__ == "__main__":
    draw = random.Random(0)
    for name, rows in (("train", 400), ("test", 64), ("validation", 32)):
        with open(f"{name}.jsonl", "w") as file:
            file.writelines(json.dumps(row(draw)) + "\n" for _ in range(rows))
