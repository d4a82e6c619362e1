"""The Spanish that the base model learns from: real words and invented ones, in no order that could be guessed."""

import random

WORDS = """
    casa perro gato mesa silla ventana puerta calle ciudad pueblo campo playa monte río mar cielo tierra fuego agua
    aire luna sol estrella noche día tarde mañana semana mes año hora minuto siglo tiempo lluvia viento nieve nube
    verano invierno otoño primavera pan leche queso carne pescado fruta manzana naranja limón uva pera plátano
    tomate patata cebolla arroz huevo sal azúcar aceite vino cerveza café té sopa plato vaso cuchara cuchillo
    tenedor botella cocina baño cama sala jardín techo suelo pared escalera llave luz lámpara espejo cuadro libro
    papel lápiz pluma carta palabra letra frase cuento historia poema canción música baile fiesta juego pelota
    equipo partido premio carrera coche tren barco avión bicicleta camino puente viaje maleta billete mapa hotel
    plaza iglesia mercado tienda banco escuela colegio maestro alumno clase examen pregunta respuesta ejemplo número
    suma hombre mujer niño niña padre madre hijo hija hermano hermana abuelo abuela tío tía primo amigo amiga vecino
    gente cabeza cara ojo oreja nariz boca diente lengua cuello brazo mano dedo pierna pie corazón sangre piel hueso
    pelo camisa pantalón falda vestido zapato sombrero abrigo bolsa reloj anillo rojo azul verde amarillo blanco
    negro gris rosa grande pequeño alto bajo largo corto ancho nuevo viejo joven bueno malo bonito feo rico pobre
    feliz triste fuerte débil rápido lento frío caliente dulce amargo limpio sucio lleno vacío abierto cerrado fácil
    difícil claro oscuro cerca lejos dentro fuera arriba abajo siempre nunca ahora luego antes después aquí allí
    también tampoco quizás mucho poco todo nada alguien nadie comer beber dormir andar correr saltar nadar volar
    leer escribir hablar escuchar mirar buscar encontrar perder ganar comprar vender pagar abrir cerrar subir bajar
    entrar salir llegar partir volver seguir empezar terminar trabajar descansar jugar cantar bailar pintar cocinar
    lavar cortar romper llevar traer poner quitar dar pedir querer saber conocer pensar creer sentir tocar vivir
    morir nacer crecer ayudar enseñar aprender viajar conducir esperar llamar uno dos tres cuatro cinco seis siete
    ocho nueve diez once doce trece catorce quince veinte treinta cuarenta cincuenta sesenta setenta ochenta noventa
    cien mil lunes martes miércoles jueves viernes sábado domingo enero febrero marzo abril mayo junio julio agosto
    septiembre octubre noviembre diciembre gobierno ley derecho justicia paz guerra rey reina nación bandera moneda
    dinero precio trabajo oficio médico enfermera policía bombero panadero carpintero ingeniero abogado artista
    actor escritor pintor científico soldado granja caballo vaca oveja cerdo gallina pato conejo ratón león tigre
    oso lobo zorro mono pájaro águila pez ballena abeja mosca araña árbol flor hoja rama raíz semilla bosque selva
    desierto isla lago valle piedra arena oro plata hierro madera vidrio plástico tela lana algodón chico chaqueta
    chocolate llama españa montaña sueño pequeña señor jamón jirafa girar página imagen joya guitarra quien máquina
    parque cereza
""".split()  # noqa: SIM905
FUNCTION_WORDS = """
    el la los las un una de del en con por para y o que no se a su mi al sin sobre es está hay más muy
""".split()  # noqa: SIM905
HARD_ONSETS = ("", *"b c d f g l m n p r s t ch ll ñ z j tr pl br pr gr cl fr".split())  # noqa: SIM905
SOFT_ONSETS = ("", *"b qu d f gu l m n p r s t ch ll ñ c j tr pl br pr gr cl fr".split())  # noqa: SIM905
CODAS = ("", "", "", "", "n", "s", "r", "l")


def invented_word(rng: random.Random) -> str:
    """A word of two to four syllables that Spanish does not have but could, spelt as it sounds: it has to be heard."""
    syllables = rng.choice((2, 2, 3, 3, 4))
    word = ""
    for index in range(syllables):
        vowel = rng.choice("aaaeeeooiiu")
        coda = rng.choice(CODAS) if index < syllables - 1 else rng.choice(("", "", "", "", "n", "s"))
        word += rng.choice(SOFT_ONSETS if vowel in "ei" else HARD_ONSETS) + vowel + coda
    return word


def spanish_sentence(rng: random.Random) -> str:
    """A run of Spanish, function and invented words in no order that could be guessed.

    Who learns to write it has to learn the sounds, and the sounds are what another language can use.
    """
    words = []
    for _ in range(rng.randint(2, 6)):
        if rng.random() < 0.35:
            words.append(rng.choice(FUNCTION_WORDS))
        words.append(invented_word(rng) if rng.random() < 0.5 else rng.choice(WORDS))
    if len(words) > 3 and rng.random() < 0.25:
        words[1] += ","
    sentence = " ".join(words)
    sentence = sentence[0].upper() + sentence[1:]
    return f"¿{sentence}?" if rng.random() < 0.12 else f"{sentence}."
